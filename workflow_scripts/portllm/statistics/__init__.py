"""Statistics of scores: pure functions on arrays, independent of studies, files and tables.

A `level` is the confidence level of a two-sided interval, e.g. 0.95. Functions raise InputError for
values that are not finite, not in the required range, or too few.
"""

from portllm.statistics.estimates import (
    NORMAL,
    WILSON,
    Score,
    normal_interval,
    proportion_interval,
    score,
)
from portllm.statistics.families import holm
from portllm.statistics.items import Run, check_same_items, stacked
from portllm.statistics.paired import (
    Difference,
    Equivalence,
    Flips,
    difference,
    equivalence,
    flips,
    mcnemar,
    tango_interval,
    verdict,
)
from portllm.statistics.ratios import Recovery, recovery
from portllm.statistics.seeds import Mixed, Seeds, mixed, over_seeds
from portllm.statistics.trends import Forecast, Trend, forecast, trend

__all__ = [
    "NORMAL",
    "WILSON",
    "Difference",
    "Equivalence",
    "Flips",
    "Forecast",
    "Mixed",
    "Recovery",
    "Run",
    "Score",
    "Seeds",
    "Trend",
    "check_same_items",
    "difference",
    "equivalence",
    "flips",
    "forecast",
    "holm",
    "mcnemar",
    "mixed",
    "normal_interval",
    "over_seeds",
    "proportion_interval",
    "recovery",
    "score",
    "stacked",
    "tango_interval",
    "trend",
    "verdict",
]
