"""Statistics of scores: pure functions on arrays, with no knowledge of studies, files or tables.

Levels are those of two-sided intervals, e.g. 0.95; what is no share, no number or too little of
either raises InputError.
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
