"""Aggregate items into scores, with weights, so that bootstrap resamples need no copies.

`weights` is (resamples, items): how often each item counts. Results are (resamples,).
"""

from collections.abc import Callable

import numpy
from numpy.typing import NDArray

from portllm.errors import InputError

Array = NDArray[numpy.float64]
Aggregation = Callable[[Array, Array], Array]


def mean(weights: Array, values: Array) -> Array:
    """Return the mean of (items,) numbers."""
    return weights @ values / weights.sum(axis=1)


def _confusion(weights: Array, pairs: Array) -> tuple[Array, Array, Array, Array]:
    """Count true positives, false positives, false negatives and true negatives per resample."""
    if not numpy.isin(pairs, (0, 1)).all():
        raise InputError("F1 and MCC need classes 0 and 1; found another class")
    gold, predicted = pairs[:, 0] == 1, pairs[:, 1] == 1
    parts = (gold & predicted, ~gold & predicted, gold & ~predicted, ~gold & ~predicted)
    return tuple(weights @ part.astype(float) for part in parts)


def _ratio(above: Array, below: Array) -> Array:
    return numpy.divide(above, below, out=numpy.zeros_like(above), where=below > 0)


def f1(weights: Array, pairs: Array) -> Array:
    """Return F1 of class 1 from (items, 2) pairs of gold and predicted class; 0 for 0 / 0.

    2·TP / (2·TP + FP + FN) (van Rijsbergen 1979), as scikit-learn and lm-eval compute it.
    """
    true, false, missed, _ = _confusion(weights, pairs)
    return _ratio(2 * true, 2 * true + false + missed)


def mcc(weights: Array, pairs: Array) -> Array:
    """Return the Matthews (1975) correlation of (items, 2) pairs of gold and predicted class."""
    true, false, missed, rest = _confusion(weights, pairs)
    margins = (true + false) * (true + missed) * (rest + false) * (rest + missed)
    return _ratio(true * rest - false * missed, numpy.sqrt(margins))


AGGREGATIONS: dict[str, Aggregation] = {"mean": mean, "f1": f1, "mcc": mcc}


def arm(values: NDArray, aggregation: str) -> Array:
    """Validate the item values of one arm and add the axis of seeds if it is missing.

    Args:
        values: (items, seeds) numbers, or (items, seeds, 2) pairs for `f1` and `mcc`. A single run
            may omit the axis of seeds.
        aggregation: a key of `AGGREGATIONS`.

    Returns:
        (items, seeds) or (items, seeds, 2) in float64.

    Raises:
        InputError: fewer than two items, a value that is not finite, or a wrong shape.
    """
    if aggregation not in AGGREGATIONS:
        raise InputError(f"unknown aggregation {aggregation!r}; known: {', '.join(AGGREGATIONS)}")
    array = numpy.asarray(values, dtype=float)
    last = () if aggregation == "mean" else (2,)
    if array.ndim == 1 + len(last):
        array = array[:, None]
    if array.ndim != 2 + len(last) or array.shape[2:] != last:
        raise InputError(
            f"{aggregation}: found shape {' × '.join(map(str, array.shape))}, expected items × "
            f"seeds{' × 2' * len(last)}"
        )
    if len(array) < 2:
        raise InputError(f"found {len(array)} items, expected two or more")
    if not numpy.isfinite(array).all():
        raise InputError("found an item whose value is missing or infinite, expected a number")
    return array


def by_seed(values: Array, aggregation: str) -> Array:
    """Return the score of each seed of an arm, (seeds,)."""
    once = numpy.ones((1, len(values)))
    columns = range(values.shape[1])
    return numpy.array([AGGREGATIONS[aggregation](once, values[:, s])[0] for s in columns])


def is_binary(values: Array) -> bool:
    """Whether every item is correct (1) or incorrect (0)."""
    return bool(numpy.isin(values, (0, 1)).all())
