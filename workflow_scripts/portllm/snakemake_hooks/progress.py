"""How far a run is: after each job, how long it has taken and what each stage has left.

Snakemake announces what it does in its log, with the numbers; here they are put together, and at
the end it is said where the results are, or which jobs failed and where each says why.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from snakemake_interface_logger_plugins.common import LogEvent


def duration(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress(logging.Handler):
    """Listens to a run's log and tells how far it is."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._begun = time.monotonic()
        self._wanted: dict[str, int] = {}
        self._done: Counter[str] = Counter()
        self._rules: dict[int, str] = {}
        self._failed: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Count a job that begins, ends or fails."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._wanted = {rule: n for rule, n in record.stats.items() if rule != "total"}
        elif event == LogEvent.JOB_INFO:
            self._rules[record.jobid] = record.rule_name
        elif event == LogEvent.JOB_FINISHED:
            self._done[self._rules.get(record.job_id, "")] += 1
        elif event == LogEvent.JOB_ERROR:
            self._failed[f"{record.rule_name} ({', '.join(record.output)})"] = ", ".join(record.log)
        elif event == LogEvent.PROGRESS and (left := self.left()):
            passed = duration(time.monotonic() - self._begun)
            self._logger.info(f"After {passed}: {', '.join(left)}")

    def left(self) -> list[str]:
        """The stages that have jobs left, with how many of how many are done."""
        return [
            f"{rule} {self._done[rule]} of {wanted}"
            for rule, wanted in self._wanted.items()
            if rule != "all" and self._done[rule] < wanted
        ]

    def succeeded(self, results: Iterable[str]) -> None:
        """Say that the run is complete and where its results are."""
        took = duration(time.monotonic() - self._begun)
        self._logger.info(f"Done in {took}. Look at {', '.join(results)}.")

    def failed(self, said: Iterable[str]) -> None:
        """Say which jobs failed, and where each says why."""
        for job, logs in self._failed.items():
            self._logger.error(f"Failed: {job}; why: {logs or 'above'}")
        self._logger.error(
            f"The same command goes on from here. Everything is in {', '.join(said)}"
        )


def follow(logger: logging.Logger, *, is_main: bool) -> Progress:
    """Follow a run; Snakemakes that others start for single jobs are not followed."""
    progress = Progress(logger)
    if is_main:
        logger.addHandler(progress)
    return progress
