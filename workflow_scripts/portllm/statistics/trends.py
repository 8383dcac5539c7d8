"""Fit a straight line to scores over updates, and forecast when it falls below a threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats

from portllm.errors import InputError
from portllm.statistics.estimates import LEVEL

# Any two points lie on a line; five leave three degrees of freedom for an extrapolation.
LEAST_FOR_A_TREND = 3
LEAST_FOR_A_FORECAST = 5

Numbers = Sequence[float] | NDArray[numpy.float64]


@dataclass(frozen=True)
class Trend:
    """A line through scores: slope with its interval, and the two-sided p-value of slope 0.

    `slope`, `stderr`, `low` and `high` are in the scores' unit per update; `intercept` is the
    line's score at update 0.
    """

    slope: float
    intercept: float
    stderr: float
    low: float
    high: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Forecast:
    """The update at which the fitted line falls below a threshold, with its interval.

    `high` is infinite if the line may never fall below. `falling` is whether the slope is below
    zero at the confidence level; if not, the crossing is not significant, and `update` is infinite
    if the slope is not negative at all. `extrapolated` is whether `update` lies beyond the last
    observed update.
    """

    update: float
    low: float
    high: float
    falling: bool
    extrapolated: bool
    threshold: float
    level: float
    trend: Trend


def _points(
    updates: Numbers, values: Numbers, least: int, purpose: str
) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    x, y = numpy.asarray(updates, dtype=float), numpy.asarray(values, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"{purpose} needs one value per update; found {y.size} for {x.size}")
    if not (numpy.isfinite(x).all() and numpy.isfinite(y).all()):
        raise InputError(f"{purpose} needs numbers; found a value that is missing or infinite")
    distinct = numpy.unique(x).size
    if distinct < least:
        raise InputError(f"{purpose} needs scores at {least} or more updates; found {distinct}")
    return x, y


def trend(updates: Numbers, values: Numbers, level: float = LEVEL) -> Trend:
    """Fit a line through scores by ordinary least squares.

    Interval and test are Student's with k − 2 degrees of freedom (Draper and Smith 1998, Applied
    Regression Analysis, section 1.4). If all scores are equal, the interval is NaN.

    Args:
        updates: k numbers of updates, which may repeat, e.g. for several seeds.
        values: k scores.
        level: confidence level.

    Raises:
        InputError: fewer than three distinct updates.
    """
    x, y = _points(updates, values, LEAST_FOR_A_TREND, "a trend")
    line = stats.linregress(x, y)
    # Equal scores have no residual variance, so there is no test and no interval.
    constant = numpy.ptp(y) == 0
    stderr = 0.0 if constant else float(line.stderr)
    margin = math.nan if constant else float(stats.t.ppf((1 + level) / 2, x.size - 2)) * stderr
    return Trend(
        slope=float(line.slope),
        intercept=float(line.intercept),
        stderr=stderr,
        low=float(line.slope) - margin,
        high=float(line.slope) + margin,
        p_value=1.0 if constant else float(line.pvalue),
        n=x.size,
    )


def forecast(updates: Numbers, values: Numbers, threshold: float, level: float = LEVEL) -> Forecast:
    """Forecast the update at which the line through the scores falls below `threshold`.

    The interval is Fieller's (1954; Draper and Smith 1998, section 3.2): all x at which the
    confidence band of the line contains the threshold,

        (a + b·x − threshold)² ≤ t² · s² · (1/k + (x − x̄)² / Σ(xᵢ − x̄)²).

    It is bounded only if the slope differs from zero at the confidence level.

    Args:
        updates: k numbers of updates.
        values: k scores.
        threshold: in the scores' unit.
        level: confidence level.

    Raises:
        InputError: fewer than five distinct updates.
    """
    x, y = _points(updates, values, LEAST_FOR_A_FORECAST, "a forecast")
    line = trend(x, y, level)
    falling = line.high < 0
    update = math.inf
    if line.slope < 0:
        update = (threshold - line.intercept) / line.slope
    low, high = _crossings(x, line, threshold, level)
    return Forecast(
        update=update,
        low=low,
        high=high,
        falling=falling,
        extrapolated=bool(update > x.max()),
        threshold=threshold,
        level=level,
        trend=line,
    )


def _crossings(
    x: NDArray[numpy.float64], line: Trend, threshold: float, level: float
) -> tuple[float, float]:
    """Return the ends of Fieller's interval from the roots of its quadratic in z = x − x̄."""
    if line.low > 0:
        return math.inf, math.inf
    quantile = stats.t.ppf((1 + level) / 2, x.size - 2)
    spread = float(((x - x.mean()) ** 2).sum())
    # stderr² is s² / Σ(x − x̄)², hence s² / k is stderr² · spread / k.
    noise = (quantile * line.stderr) ** 2
    above = line.intercept + line.slope * x.mean() - threshold
    a, b = line.slope**2 - noise, 2 * above * line.slope
    c = above**2 - noise * spread / x.size
    if line.high < 0:
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        ends = sorted(((-b - root) / (2 * a), (-b + root) / (2 * a)))
        return float(x.mean() + ends[0]), float(x.mean() + ends[1])
    # The slope may be zero. If the scores lie clearly above the threshold, there is an earliest
    # crossing, the larger root, but no latest; otherwise neither end exists.
    if a < 0 and c > 0 and above > 0:
        root = math.sqrt(b * b - 4 * a * c)
        return float(x.mean() + (-b - root) / (2 * a)), math.inf
    if a == 0 and b == 0 and above > 0:
        return math.inf, math.inf
    return -math.inf, math.inf
