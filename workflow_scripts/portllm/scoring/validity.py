"""Refuse scores that rest on NaN: log-likelihoods and metrics that are not numbers.

An argmax over NaN is always the first choice, so a broken model scores as well as a guess, or
perfectly if the first choice is always right.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from portllm.errors import InputError

ADVICE = (
    "the version or the patch is damaged, or overflows in scoring.dtype; make it again, or set "
    "scoring.dtype: float32"
)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)


def check_answers(samples: Iterable[dict[str, Any]]) -> None:
    """Raise InputError if a log-likelihood is NaN or +inf.

    A log-likelihood of −inf is the probability zero, which a model with masked logits gives, and
    which can be ranked.

    Args:
        samples: rows with lm-eval's `resps`, which also holds generated text, and `doc_id`.
    """
    total, invalid = 0, []
    for sample in samples:
        for number in _numbers(sample.get("resps")):
            total += 1
            if math.isnan(number) or number == math.inf:
                invalid.append((sample["doc_id"], number))
    if invalid:
        document, number = invalid[0]
        raise InputError(
            f"{len(invalid)} of {total} log-likelihoods are not finite (first: {number}, document "
            f"{document}); {ADVICE}"
        )


def check_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    """Raise InputError if the value of a metric is NaN or infinite.

    Args:
        metrics: as `metrics.parse` returns them.
    """
    for name, measured in metrics.items():
        if not math.isfinite(measured["value"]):
            raise InputError(f"the score {name} is {measured['value']}; {ADVICE}")
