"""Durations as text, and the forecast of a run's remaining time."""

import pytest

from portllm.jobs.durations import JobForecast, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (1, "1 s"),
        (59.6, "60 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3599, "1 h 00 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_rule_takes_as_long_as_its_finished_jobs() -> None:
    forecast = JobForecast({"train": 60, "score": 30}, 10)
    assert forecast.expected_seconds("train") is None
    for seconds in (8, 12):
        forecast.add("train", seconds)
    assert forecast.expected_seconds("train") == 10
    # Nothing is known of these but their weights: a sixth of a second for each unit.
    assert forecast.expected_seconds("score") == 5
    assert forecast.expected_seconds("table") == pytest.approx(10 / 6)


def test_a_rule_without_a_weight_says_nothing_about_others() -> None:
    forecast = JobForecast({"train": 60}, 10)
    forecast.add("environment", 100)
    assert forecast.seconds_left({"train": 1}, [], 100) is None
    assert forecast.seconds_left({"environment": 1}, [], 100) == 100


def test_the_time_left_counts_jobs_that_run_at_once() -> None:
    forecast = JobForecast({"train": 60}, 10)
    for _ in range(4):
        forecast.add("train", 10)
    # 40 s of work in 20 s: two jobs at once.
    assert forecast.seconds_left({"train": 6}, [], 20) == 30
    # A job that has run for 4 of its 10 s, alone at the end.
    assert forecast.seconds_left({}, [("train", 4)], 22) == 6
    # A job that takes longer than expected is as good as finished.
    assert forecast.seconds_left({"train": 0}, [("train", 15)], 22) == 0
