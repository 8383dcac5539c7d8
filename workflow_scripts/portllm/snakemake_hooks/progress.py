"""Report the progress of a run: one line when a job starts, ends or fails.

Snakemake announces each event in its log. `Progress` is a log handler that counts the events and
logs lines of its own. On the terminal they replace Snakemake's report of each job, which fills a
screen every few jobs. Snakemake's log file keeps both. With --verbose or --printshellcmds, the
terminal shows both as well.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from portllm.jobs.durations import JobForecast, format_duration
from portllm.snakemake_hooks.run_guard import STREAM_HANDLER

OTHER_RULES_MINUTES = 5
"""Relative duration of jobs that request no time, such as tables (`resource_requests.MINUTES`)."""
REPLACED_EVENTS = frozenset(
    {
        LogEvent.WORKFLOW_STARTED,
        LogEvent.JOB_INFO,
        LogEvent.JOB_STARTED,
        LogEvent.JOB_FINISHED,
        LogEvent.PROGRESS,
    }
)
REPLACED_MESSAGES = (
    "Assuming unrestricted shared filesystem",
    "Using shell: ",
    "Rules claiming more threads",
    "Conda environments: ignored",
    "Select jobs to execute",
    "Handing over execution",
)


@dataclass(frozen=True)
class StartedJob:
    """A job that has started. `start` is a reading of `time.monotonic`."""

    rule: str
    wildcards: tuple[str, ...]
    outputs: tuple[str, ...]
    start: float
    is_reported: bool

    @property
    def name(self) -> str:
        """The rule and the values of its wildcards, as in the path of its log."""
        return f"{self.rule} {'/'.join(self.wildcards)}".rstrip()


class Progress(logging.Handler):
    """Log handler that counts the jobs of a run and reports their starts, ends and failures."""

    def __init__(self, logger: logging.Logger, minutes: Mapping[str, float]) -> None:
        """Create a handler; `minutes` are the relative durations of the jobs of long rules."""
        super().__init__()
        self._logger = logger
        self._start = time.monotonic()
        self._jobs_start: float | None = None
        self._total: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._running: dict[int, StartedJob] = {}
        self._failures: dict[str, str] = {}
        self._outputs: list[str] = []
        self._forecast = JobForecast(minutes, OTHER_RULES_MINUTES)

    def emit(self, record: logging.LogRecord) -> None:
        """Count a job that starts, ends or fails."""
        match getattr(record, "event", None):
            case LogEvent.RUN_INFO:
                stats = {rule: count for rule, count in record.stats.items() if rule != "total"}
                self._total = Counter(stats)
            case LogEvent.JOB_INFO:
                self._job_started(record)
            case LogEvent.JOB_FINISHED:
                self._job_finished(record.job_id)
            case LogEvent.JOB_ERROR:
                self._job_failed(record)

    def _job_started(self, record: Any) -> None:
        now = time.monotonic()
        self._jobs_start = self._jobs_start or now
        wildcards = tuple(map(str, record.wildcards.values()))
        # `all` has no command, and the plan prints its own output.
        is_reported = bool(record.shellcmd) and not record.is_handover
        job = StartedJob(record.rule_name, wildcards, tuple(record.output), now, is_reported)
        self._running[record.jobid] = job
        if job.is_reported:
            self._report(f"start {job.name}")

    def _job_finished(self, jobid: int) -> None:
        job = self._running.pop(jobid, None)
        if job is None:
            return
        seconds = time.monotonic() - job.start
        self._done[job.rule] += 1
        self._outputs += job.outputs
        self._failures.pop(job.name, None)  # an earlier attempt
        if not job.is_reported:
            return
        self._forecast.add(job.rule, seconds)
        text = f"done  {job.name} in {format_duration(seconds)}; {self._elapsed()} elapsed"
        left = self._seconds_left() or 0
        self._report(text + (f", about {format_duration(left)} left" if left >= 1 else ""))

    def _job_failed(self, record: Any) -> None:
        job = self._running.pop(record.jobid, None)
        name = job.name if job else record.rule_name
        log_files = ", ".join(record.log) or "see the error above"
        self._failures[name] = log_files
        self._logger.error(self._line(f"FAILED {name}; log: {log_files}"))

    def _seconds_left(self) -> float | None:
        now = time.monotonic()
        running = [(job.rule, now - job.start) for job in self._running.values()]
        pending = self._total - self._done - Counter(rule for rule, _ in running)
        pending.pop("all", None)
        return self._forecast.seconds_left(pending, running, now - (self._jobs_start or now))

    def _elapsed(self) -> str:
        return format_duration(time.monotonic() - self._start)

    def _line(self, text: str) -> str:
        total = self._total.total()
        done = f"{self._done.total():{len(str(total))}}"
        return f"{time.strftime('%H:%M:%S')} [{done}/{total}] {text}"

    def _report(self, text: str) -> None:
        self._logger.info(self._line(text), extra={"quietness": Quietness.PROGRESS})

    def succeeded(self, results: Iterable[str]) -> None:
        """Report the end of a complete run, and which of the main results it made.

        Args:
            results: files and directories, the most important first.
        """
        if not self._outputs:
            return
        made = [result for result in results if self._has_made(result)]
        made = made or sorted({str(Path(self._outputs[-1]).parent)})
        jobs = self._done.total()
        count = f"{jobs} job" if jobs == 1 else f"{jobs} jobs"
        self._logger.info(f"Finished {count} in {self._elapsed()}. Results: {', '.join(made)}")

    def _has_made(self, result: str) -> bool:
        return any(Path(output).is_relative_to(result) for output in self._outputs)

    def failed(self, not_made: Iterable[str] = ()) -> None:
        """Report the end of a failed run: which jobs failed, their logs, and what is missing.

        Args:
            not_made: lines about results that were not made.
        """
        for job, job_logs in self._failures.items():
            self._logger.error(f"Failed: {job}; log: {job_logs}")
        for line in not_made:
            self._logger.error(line)
        self._logger.error("Rerun the same command to resume.")


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a record of Snakemake's is shown on the terminal beside the lines of `Progress`."""
    if getattr(record, "event", None) in REPLACED_EVENTS:
        return False
    return not str(record.msg).startswith(REPLACED_MESSAGES)


def follow(workflow: Any, logger: logging.Logger, minutes: Mapping[str, float]) -> Progress:
    """Report the progress of a workflow's run. Call it where the workflow is defined.

    Dry runs, and Snakemake processes that run a single job for another Snakemake, are left alone.
    """
    progress = Progress(logger, minutes)
    output = workflow.output_settings
    if not workflow.is_main_process or output.dryrun:
        return progress
    logger.addHandler(progress)
    if not (output.verbose or output.printshellcmds):
        for handler in logger.handlers:
            if handler.name == STREAM_HANDLER:
                handler.addFilter(is_shown)
    return progress
