"""Statistics of scores: pure functions on arrays, with no knowledge of studies, files or tables.

Levels are those of two-sided intervals, e.g. 0.95; what is no share, no number or too little of
either raises InputError.
"""

from portllm.statistics.families import holm
from portllm.statistics.trends import Forecast, Trend, forecast, trend

__all__ = [
    "Forecast",
    "Trend",
    "forecast",
    "holm",
    "trend",
]
