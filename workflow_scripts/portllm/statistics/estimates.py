"""Estimate a score with its standard error and confidence interval."""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from portllm.statistics import aggregations, resampling
from portllm.study import schema

_DEFAULTS = schema.defaults("statistics")
LEVEL: float = _DEFAULTS["level"]
RESAMPLES: int = _DEFAULTS["resamples"]
SEED: int = _DEFAULTS["seed"]
# Kinds of intervals.
WILSON, NORMAL, BOOTSTRAP = "Wilson", "normal", "bootstrap"


@dataclass(frozen=True)
class Score:
    """A score in its metric's unit, over `n` items; `interval` names the kind of interval."""

    value: float
    stderr: float
    low: float
    high: float
    n: int
    interval: str


def proportion_interval(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's (1927) score interval of a share of n items."""
    low, high = proportion_confint(share * n, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def normal_interval(value: float, stderr: float, level: float = LEVEL) -> tuple[float, float]:
    """Return value ± z · stderr, for scores whose items are not available.

    For bootstrap standard errors see Efron and Tibshirani (1993), chapter 13.
    """
    margin = float(stats.norm.ppf((1 + level) / 2)) * stderr
    return value - margin, value + margin


def score(
    values: NDArray,
    aggregation: str = "mean",
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Score:
    """Score the items of one run.

    Binary items have Wilson's interval and lm-eval's standard error, √(p(1 − p) / (n − 1)). Other
    items have the bootstrap's, with a NaN interval if all resamples are equal.

    Args:
        values: (items,) numbers, or (items, 2) pairs for `f1` and `mcc`.
        aggregation: how items make a score.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    items = aggregations.arm(values, aggregation)
    value, n = float(aggregations.by_seed(items, aggregation)[0]), len(items)
    if aggregation == "mean" and aggregations.is_binary(items):
        stderr = math.sqrt(value * (1 - value) / (n - 1))
        return Score(value, stderr, *proportion_interval(value, n, level), n, WILSON)
    (drawn,) = resampling.resampled([items], aggregation, resamples, seed)
    # Equal resamples say nothing about unseen items.
    constant = numpy.ptp(drawn) == 0
    low, high = (math.nan, math.nan) if constant else resampling.percentiles(drawn, level)
    return Score(value, float(numpy.std(drawn, ddof=1)), low, high, n, BOOTSTRAP)
