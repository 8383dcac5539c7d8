"""Trends over updates: a straight line through scores, and when it falls below a threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats

from portllm.errors import InputError
from portllm.statistics.estimates import LEVEL

# Two points lie on a line whatever they are; five leave three degrees of freedom to extrapolate.
LEAST_FOR_A_TREND = 3
LEAST_FOR_A_FORECAST = 5

Numbers = Sequence[float] | NDArray[numpy.float64]


@dataclass(frozen=True)
class Trend:
    """A line through scores: change per update with its interval, and the two-sided p of no change.

    `slope`, `stderr`, `low` and `high` are in the scores' unit per update, `intercept` in the
    scores' unit at update 0.
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
    """The update from which on the fitted line lies below a threshold, with its interval.

    Ends may be infinite: `high` is where the data do not exclude that the line never falls below.
    Where `falling` is false the slope is not below zero at the level; no crossing is then shown,
    and `update` is infinite where the slope is not negative at all. `extrapolated` says that
    `update` lies beyond the last update seen.
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
    updates: Numbers, values: Numbers, least: int, what: str
) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    x, y = numpy.asarray(updates, dtype=float), numpy.asarray(values, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"{what} needs one value for each update; found {y.size} for {x.size}")
    if not (numpy.isfinite(x).all() and numpy.isfinite(y).all()):
        raise InputError(f"{what} needs numbers; found one that is missing or infinite")
    if numpy.unique(x).size < least:
        raise InputError(
            f"{what} needs scores at {least} different updates or more; found "
            f"{numpy.unique(x).size}"
        )
    return x, y


def trend(updates: Numbers, values: Numbers, level: float = LEVEL) -> Trend:
    """Fit a line through scores by ordinary least squares.

    `updates` (k numbers) may repeat, e.g. for several seeds; `values` are k scores. The interval
    and the test are Student's with k − 2 degrees of freedom (scipy.stats.linregress; Draper and
    Smith 1998, Applied Regression Analysis, section 1.4); scores that are all equal have no
    interval (NaN). Raises InputError with fewer than three
    different updates.
    """
    x, y = _points(updates, values, LEAST_FOR_A_TREND, "a trend")
    line = stats.linregress(x, y)
    # Scores that are all equal have no scatter to test against, or to make an interval of.
    level_line = numpy.ptp(y) == 0
    stderr = 0.0 if level_line else float(line.stderr)
    margin = math.nan if level_line else float(stats.t.ppf((1 + level) / 2, x.size - 2)) * stderr
    return Trend(
        slope=float(line.slope),
        intercept=float(line.intercept),
        stderr=stderr,
        low=float(line.slope) - margin,
        high=float(line.slope) + margin,
        p_value=1.0 if level_line else float(line.pvalue),
        n=x.size,
    )


def forecast(updates: Numbers, values: Numbers, threshold: float, level: float = LEVEL) -> Forecast:
    """Say at which update the line through the scores falls below `threshold`.

    The interval is Fieller's (1954; Draper and Smith 1998, section 3.2): all x at which the line's
    own confidence band at `level` holds the threshold,

        (a + b·x − threshold)² ≤ t² · s² · (1/k + (x − x̄)² / Σ(xᵢ − x̄)²).

    It is bounded only where the slope differs from zero at the level. Raises InputError with fewer
    than five different updates, for which a line extrapolates nothing.
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
    """Ends of the interval: of the roots of Fieller's quadratic in z = x − x̄."""
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
    # A slope that may be zero: where the scores lie clearly above the threshold there is an
    # earliest crossing, the larger root, and no latest; else there is neither.
    if a < 0 and c > 0 and above > 0:
        root = math.sqrt(b * b - 4 * a * c)
        return float(x.mean() + (-b - root) / (2 * a)), math.inf
    if a == 0 and b == 0 and above > 0:
        return math.inf, math.inf
    return -math.inf, math.inf
