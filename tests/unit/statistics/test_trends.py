"""Trends over updates, forecasts and Holm's correction, against other implementations."""

import math

import numpy
import pytest
import statsmodels.api
from hypothesis import given, settings
from hypothesis import strategies as st

from portllm import statistics
from portllm.errors import InputError

# Ten updates of a score that falls by about two points each.
UPDATES = numpy.arange(1, 11)
FALLING = numpy.array([0.80, 0.77, 0.77, 0.74, 0.71, 0.71, 0.67, 0.66, 0.65, 0.61])
NOISE = numpy.array([0.80, 0.77, 0.81, 0.78, 0.79, 0.80, 0.78, 0.79, 0.81, 0.77])


def ordinary_least_squares(x: numpy.ndarray, y: numpy.ndarray):
    return statsmodels.api.OLS(y, statsmodels.api.add_constant(x.astype(float))).fit()


@pytest.mark.parametrize("values", [FALLING, NOISE])
def test_a_trend_is_that_of_statsmodels(values: numpy.ndarray) -> None:
    trend = statistics.trend(UPDATES, values)
    theirs = ordinary_least_squares(UPDATES, values)
    assert (trend.intercept, trend.slope) == pytest.approx(tuple(theirs.params))
    assert trend.stderr == pytest.approx(theirs.bse[1])
    assert trend.p_value == pytest.approx(theirs.pvalues[1])
    assert (trend.low, trend.high) == pytest.approx(tuple(theirs.conf_int()[1]))
    assert trend.n == 10


def test_a_trend_by_hand() -> None:
    # Residuals 1/6, −1/3, 1/6: s² = 1/6, Sxx = 2, stderr² = 1/12; t with one degree is Cauchy's.
    trend = statistics.trend([0, 1, 2], [1, 1, 2])
    assert (trend.slope, trend.intercept) == pytest.approx((0.5, 5 / 6))
    assert trend.stderr == pytest.approx(math.sqrt(1 / 12))
    assert trend.p_value == pytest.approx(1 - 2 * math.atan(0.5 * math.sqrt(12)) / math.pi)


def test_equal_scores_have_no_trend() -> None:
    trend = statistics.trend([1, 2, 3], [0.5, 0.5, 0.5])
    assert (trend.slope, trend.p_value) == (0, 1)
    # Nothing says how much they might have differed.
    assert math.isnan(trend.low)
    assert math.isnan(trend.high)


@pytest.mark.parametrize("values", [FALLING, NOISE])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.79, 0.85])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_forecast_is_where_the_confidence_band_meets_the_threshold(
    values: numpy.ndarray, threshold: float, level: float
) -> None:
    # By brute force: statsmodels' band of the line on a fine grid, far to both sides.
    grid = numpy.linspace(-2000, 2000, 400_001)
    theirs = ordinary_least_squares(UPDATES, values)
    points = theirs.get_prediction(statsmodels.api.add_constant(grid))
    low, high = points.conf_int(alpha=1 - level).T
    held = grid[(low <= threshold) & (threshold <= high)]
    found = statistics.forecast(UPDATES, values, threshold, level)
    assert found.falling == (theirs.conf_int(1 - level)[1][1] < 0)
    if found.falling:
        assert (found.low, found.high) == pytest.approx((held.min(), held.max()), abs=0.02)
        assert found.low <= found.update <= found.high
    else:
        assert found.high == math.inf
        later = held[held > UPDATES.mean()]
        if math.isfinite(found.low):
            assert found.low == pytest.approx(later.min(), abs=0.02)
            assert numpy.diff(later).max() < 0.011
        else:
            # The threshold lies within the band where the scores are, or above it.
            assert held.min() < UPDATES.mean()


def test_a_forecast_by_hand() -> None:
    found = statistics.forecast([0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5], 0.2)
    assert (found.update, found.low, found.high) == pytest.approx((7, 7, 7))
    assert found.falling
    assert found.extrapolated
    assert not statistics.forecast([0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5], 0.6).extrapolated


def test_a_score_that_rises_or_stays_never_falls_below() -> None:
    rising = statistics.forecast(UPDATES, FALLING[::-1], 0.5)
    level = statistics.forecast(UPDATES, [0.6] * 10, 0.5)
    for found in (rising, level):
        assert not found.falling
        assert (found.update, found.low, found.high) == (math.inf, math.inf, math.inf)
    noisy = statistics.forecast(UPDATES, NOISE, 0.5)
    assert not noisy.falling
    assert noisy.high == math.inf
    assert 10 < noisy.low < math.inf


@pytest.mark.parametrize(
    ("updates", "values", "message"),
    [
        ([1, 2], [1, 2], "a trend needs scores at 3 different updates or more; found 2"),
        ([1, 1, 1, 2], [1, 2, 3, 4], "a trend needs scores at 3 different updates or more"),
        ([1, 2, 3], [1, 2], "a trend needs one value for each update; found 2 for 3"),
        ([1, 2, 3], [1, 2, math.nan], "a trend needs numbers; found one that is missing"),
    ],
)
def test_a_trend_of_too_little_is_refused(updates, values, message: str) -> None:
    with pytest.raises(InputError, match=message):
        statistics.trend(updates, values)


def test_a_forecast_from_four_points_is_refused() -> None:
    with pytest.raises(InputError, match="a forecast needs scores at 5 different updates or more"):
        statistics.forecast([1, 2, 3, 4], [4, 3, 2, 1], 0)


def test_the_interval_of_a_slope_covers_it() -> None:
    # 2,000 studies of ten updates: 95 % of the intervals hold the true slope and crossing.
    generator = numpy.random.default_rng(1)
    held = crossed = 0
    for _ in range(2000):
        values = 0.8 - 0.02 * UPDATES + generator.normal(0, 0.01, 10)
        found = statistics.forecast(UPDATES, values, 0.5)
        held += found.trend.low <= -0.02 <= found.trend.high
        crossed += found.low <= 15 <= found.high
    # Three standard errors of a share of 2,000.
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert crossed / 2000 == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1, 1])


# statsmodels collects garbage on every call, which takes its time.
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_steps_down(p_values: list[float]) -> None:
    adjusted, running = {}, 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    assert statistics.holm(p_values) == pytest.approx([adjusted[i] for i in range(len(p_values))])


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match=r"found a p-value of 1\.5, expected one between 0 and 1"):
        statistics.holm([0.1, 1.5])
    with pytest.raises(InputError, match="found a p-value of nan"):
        statistics.holm([math.nan])
