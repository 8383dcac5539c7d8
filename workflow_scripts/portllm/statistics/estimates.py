"""A score with its standard error, its interval and the number of its items."""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from portllm.statistics import aggregations, resampling

RESAMPLES = 10_000
SEED = 1234


@dataclass(frozen=True)
class Score:
    """A score in its metric's own unit; `n` items."""

    value: float
    stderr: float
    low: float
    high: float
    n: int


def proportion_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of n items (statsmodels proportion_confint)."""
    low, high = proportion_confint(share * n, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def normal_interval(value: float, stderr: float, level: float = 0.95) -> tuple[float, float]:
    """Value ± z standard errors (Efron and Tibshirani 1993, chapter 13, for the bootstrap's).

    For scores whose standard error is known and whose items are not.
    """
    margin = float(stats.norm.ppf((1 + level) / 2)) * stderr
    return value - margin, value + margin


def score(
    values: NDArray,
    aggregation: str = "mean",
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Score:
    """Score one run's items: (items,) numbers, or (items, 2) pairs for `f1` and `mcc`.

    Items that are right or wrong have Wilson's interval and lm-eval's standard error,
    √(p(1 − p) / (n − 1)); all else the bootstrap's.
    """
    items = aggregations.arm(values, aggregation)
    value, n = float(aggregations.by_seed(items, aggregation)[0]), len(items)
    if aggregation == "mean" and aggregations.is_binary(items):
        stderr = math.sqrt(value * (1 - value) / (n - 1))
        return Score(value, stderr, *proportion_interval(value, n, level), n)
    (drawn,) = resampling.resampled([items], aggregation, resamples, seed)
    return Score(value, float(numpy.std(drawn, ddof=1)), *resampling.percentiles(drawn, level), n)
