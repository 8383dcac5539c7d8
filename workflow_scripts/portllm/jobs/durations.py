"""Durations for people, and estimates of the time left."""

from collections import defaultdict
from collections.abc import Iterable, Mapping


def format_duration(seconds: float) -> str:
    """Format seconds: 0.4 s, 45 s, 12 min, 3 h 20 min."""
    if seconds < 1:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class JobForecast:
    """Estimates the time that the remaining jobs of a run take.

    A job is expected to take as long as the finished jobs of its rule did on average. For a rule
    without finished jobs it is the rule's weight, times the seconds that finished jobs took for
    each unit of their weight.
    """

    def __init__(self, weights: Mapping[str, float], default_weight: float) -> None:
        """Create a forecast.

        Args:
            weights: relative durations of the jobs of long rules, in any unit.
            default_weight: relative duration of the jobs of all other rules.
        """
        self._weights = weights
        self._default_weight = default_weight
        self._finished: dict[str, list[float]] = defaultdict(list)

    def add(self, rule: str, seconds: float) -> None:
        """Note how long a finished job took."""
        self._finished[rule].append(seconds)

    def expected_seconds(self, rule: str) -> float | None:
        """Estimate how long a job takes; None before any comparable job has finished."""
        if times := self._finished.get(rule):
            return sum(times) / len(times)
        weighted = {name: times for name, times in self._finished.items() if name in self._weights}
        if not weighted:
            return None
        seconds = sum(map(sum, weighted.values()))
        weight = sum(self._weights[name] * len(times) for name, times in weighted.items())
        return self._weights.get(rule, self._default_weight) * seconds / weight

    def seconds_left(
        self, pending: Mapping[str, int], running: Iterable[tuple[str, float]], elapsed: float
    ) -> float | None:
        """Estimate how long a run still takes.

        Args:
            pending: number of jobs of each rule that have not started.
            running: rule and seconds so far of each running job.
            elapsed: seconds since the first job started.

        Returns:
            Seconds, or None if a rule's duration cannot be estimated yet.
        """
        running = list(running)
        expected = {
            rule: self.expected_seconds(rule)
            for rule in [*(rule for rule, count in pending.items() if count), *dict(running)]
        }
        if None in expected.values():
            return None
        remaining = [max(0.0, expected[rule] - seconds) for rule, seconds in running]
        work = sum(remaining) + sum(
            count * expected.get(rule, 0) for rule, count in pending.items()
        )
        busy = sum(map(sum, self._finished.values())) + sum(seconds for _, seconds in running)
        jobs_at_once = busy / elapsed if busy and elapsed else 1.0
        return max([work / jobs_at_once, *remaining])
