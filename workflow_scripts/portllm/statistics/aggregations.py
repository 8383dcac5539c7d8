"""How items make a score, with a weight for each item, so that resampling needs no copies.

`weights` are (resamples, items) numbers of times that an item counts; results are (resamples,).
"""

from collections.abc import Callable

import numpy
from numpy.typing import NDArray

from portllm.errors import InputError

Array = NDArray[numpy.float64]
Aggregation = Callable[[Array, Array], Array]


def mean(weights: Array, values: Array) -> Array:
    """Mean of (items,) numbers."""
    return weights @ values / weights.sum(axis=1)


def _confusion(weights: Array, pairs: Array) -> tuple[Array, Array, Array, Array]:
    """True positives, false positives, false negatives and true negatives of each resample."""
    if not numpy.isin(pairs, (0, 1)).all():
        raise InputError("F1 and MCC are for classes 0 and 1; found another class")
    gold, predicted = pairs[:, 0] == 1, pairs[:, 1] == 1
    parts = (gold & predicted, ~gold & predicted, gold & ~predicted, ~gold & ~predicted)
    return tuple(weights @ part.astype(float) for part in parts)


def _ratio(above: Array, below: Array) -> Array:
    return numpy.divide(above, below, out=numpy.zeros_like(above), where=below > 0)


def f1(weights: Array, pairs: Array) -> Array:
    """F1 of class 1 from (items, 2) pairs of gold and predicted class; 0 where it is 0 / 0.

    2·TP / (2·TP + FP + FN) (van Rijsbergen 1979), as scikit-learn and lm-eval compute it.
    """
    true, false, missed, _ = _confusion(weights, pairs)
    return _ratio(2 * true, 2 * true + false + missed)


def mcc(weights: Array, pairs: Array) -> Array:
    """Correlation of gold and predicted class (Matthews 1975) from (items, 2) pairs."""
    true, false, missed, rest = _confusion(weights, pairs)
    margins = (true + false) * (true + missed) * (rest + false) * (rest + missed)
    return _ratio(true * rest - false * missed, numpy.sqrt(margins))


AGGREGATIONS: dict[str, Aggregation] = {"mean": mean, "f1": f1, "mcc": mcc}


def arm(values: NDArray, aggregation: str) -> Array:
    """Item values of one arm as (items, seeds), or (items, seeds, 2) for pairs of classes.

    A single run may come without the axis of seeds. Raises InputError for fewer than two items,
    for what is no finite number, and for a shape that does not go with the aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise InputError(f"no aggregation {aggregation!r}; known: {', '.join(AGGREGATIONS)}")
    array = numpy.asarray(values, dtype=float)
    last = () if aggregation == "mean" else (2,)
    if array.ndim == 1 + len(last):
        array = array[:, None]
    if array.ndim != 2 + len(last) or array.shape[2:] != last:
        raise InputError(
            f"{aggregation} takes items × seeds{' × 2' * len(last)}; found "
            f"{' × '.join(map(str, array.shape))}"
        )
    if len(array) < 2:
        raise InputError(f"found {len(array)} items, expected two or more")
    if not numpy.isfinite(array).all():
        raise InputError("found an item without a value, expected a number for each")
    return array


def by_seed(values: Array, aggregation: str) -> Array:
    """The score of each seed of an arm, (seeds,)."""
    once = numpy.ones((1, len(values)))
    columns = range(values.shape[1])
    return numpy.array([AGGREGATIONS[aggregation](once, values[:, s])[0] for s in columns])


def is_binary(values: Array) -> bool:
    """Whether every item is right (1) or wrong (0)."""
    return bool(numpy.isin(values, (0, 1)).all())
