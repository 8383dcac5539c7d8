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
def test_a_trend_equals_statsmodels(values: numpy.ndarray) -> None:
    trend = statistics.trend(UPDATES, values)
    reference = ordinary_least_squares(UPDATES, values)
    assert (trend.intercept, trend.slope) == pytest.approx(tuple(reference.params))
    assert trend.stderr == pytest.approx(reference.bse[1])
    assert trend.p_value == pytest.approx(reference.pvalues[1])
    assert (trend.low, trend.high) == pytest.approx(tuple(reference.conf_int()[1]))
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
    # Nothing is known about their variance.
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
    reference = ordinary_least_squares(UPDATES, values)
    points = reference.get_prediction(statsmodels.api.add_constant(grid))
    low, high = points.conf_int(alpha=1 - level).T
    held = grid[(low <= threshold) & (threshold <= high)]
    result = statistics.forecast(UPDATES, values, threshold, level)
    assert result.falling == (reference.conf_int(1 - level)[1][1] < 0)
    if result.falling:
        assert (result.low, result.high) == pytest.approx((held.min(), held.max()), abs=0.02)
        assert result.low <= result.update <= result.high
    else:
        assert result.high == math.inf
        later = held[held > UPDATES.mean()]
        if math.isfinite(result.low):
            assert result.low == pytest.approx(later.min(), abs=0.02)
            assert numpy.diff(later).max() < 0.011
        else:
            # The threshold lies within the band where the scores are, or above it.
            assert held.min() < UPDATES.mean()


def test_a_forecast_by_hand() -> None:
    result = statistics.forecast([0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5], 0.2)
    assert (result.update, result.low, result.high) == pytest.approx((7, 7, 7))
    assert result.falling
    assert result.extrapolated
    assert not statistics.forecast([0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5], 0.6).extrapolated


def test_a_score_that_rises_or_stays_never_falls_below() -> None:
    rising = statistics.forecast(UPDATES, FALLING[::-1], 0.5)
    level = statistics.forecast(UPDATES, [0.6] * 10, 0.5)
    for result in (rising, level):
        assert not result.falling
        assert (result.update, result.low, result.high) == (math.inf, math.inf, math.inf)
    noisy = statistics.forecast(UPDATES, NOISE, 0.5)
    assert not noisy.falling
    assert noisy.high == math.inf
    assert 10 < noisy.low < math.inf


@pytest.mark.parametrize(
    ("updates", "values", "message"),
    [
        ([1, 2], [1, 2], "a trend needs scores at 3 or more updates; found 2"),
        ([1, 1, 1, 2], [1, 2, 3, 4], "a trend needs scores at 3 or more updates"),
        ([1, 2, 3], [1, 2], "a trend needs one value per update; found 2 for 3"),
        ([1, 2, 3], [1, 2, math.nan], "a trend needs numbers; found a value that is missing"),
    ],
)
def test_too_few_or_invalid_updates_are_errors(updates, values, message: str) -> None:
    with pytest.raises(InputError, match=message):
        statistics.trend(updates, values)


def test_a_forecast_from_four_updates_is_an_error() -> None:
    with pytest.raises(InputError, match="a forecast needs scores at 5 or more updates"):
        statistics.forecast([1, 2, 3, 4], [4, 3, 2, 1], 0)


def test_the_interval_of_a_slope_covers_it() -> None:
    # 2,000 studies of ten updates: 95 % of the intervals hold the true slope and crossing.
    generator = numpy.random.default_rng(1)
    held = crossed = 0
    for _ in range(2000):
        values = 0.8 - 0.02 * UPDATES + generator.normal(0, 0.01, 10)
        result = statistics.forecast(UPDATES, values, 0.5)
        held += result.trend.low <= -0.02 <= result.trend.high
        crossed += result.low <= 15 <= result.high
    # Three standard errors of a share of 2,000.
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert crossed / 2000 == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1, 1])


# statsmodels collects garbage on every call, which is slow.
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_steps_down(p_values: list[float]) -> None:
    adjusted, running = {}, 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    assert statistics.holm(p_values) == pytest.approx([adjusted[i] for i in range(len(p_values))])


def test_a_p_value_outside_0_to_1_is_an_error() -> None:
    with pytest.raises(InputError, match=r"found a p-value of 1\.5, expected one between 0 and 1"):
        statistics.holm([0.1, 1.5])
    with pytest.raises(InputError, match="found a p-value of nan"):
        statistics.holm([math.nan])
