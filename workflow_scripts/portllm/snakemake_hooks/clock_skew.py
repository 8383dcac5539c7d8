"""Make wrong clocks harmless, whether this machine's, another one's or a file server's.

Snakemake compares modification times. It deletes a result that is older than its inputs, a finished
training included, and misses an edit that is older than a result from the future.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from portllm.jobs.durations import format_duration

TOLERANCE = 10.0
"""Seconds that clocks may differ before a run says so."""
STEP = 1e-5
"""Seconds between the new times of files that had different ones; file systems keep less."""


def attend(workflow: Any, logger: logging.Logger) -> None:
    """Extend a workflow. Call this where the workflow is defined, also in processes that run a job.

    - A result that is older than its inputs gets their time. Snakemake would delete it.
    - Before the first job, inputs and results from the future are dated to the present.
    """
    prepare_dag, build_dag = workflow._prepare_dag, workflow._build_dag

    def prepare_and_tolerate(*arguments: Any, **settings: Any) -> None:
        prepare_dag(*arguments, **settings)
        workflow.dag.check_output_mtime = date_like_inputs

    def build_and_correct() -> None:
        build_dag()
        # No executor: a command without jobs.
        if workflow.is_main_process and workflow.executor_plugin is not None:
            # Snakemake has read these times to choose the jobs.
            read = workflow.iocache.mtime.items()
            times = {str(file): mtime.local(follow_symlinks=True) for file, mtime in read}
            message = correct_future_times(times, may_correct=not workflow.dryrun)
            if message:
                logger.warning(message)

    workflow._prepare_dag = prepare_and_tolerate
    workflow._build_dag = build_and_correct


async def date_like_inputs(job: Any, outputs: Iterable[Any]) -> None:
    """Give outputs of a job that are older than its newest input that input's time.

    Takes the place of `DAG.check_output_mtime`, which raises an error for them.
    """

    async def time_of(file: Any) -> float:
        mtime = await file.mtime_uncached(skip_storage=True)
        return mtime.local(follow_symlinks=True)

    newest = max(
        [await time_of(file) for file in job.input if await file.exists_local()], default=0
    )
    for output in outputs:
        if await output.exists_local() and await time_of(output) < newest:
            # Rounded up, because a file system may keep whole seconds only.
            output.touch((math.ceil(newest), math.ceil(newest)))


def correct_future_times(times: Mapping[str, float], *, may_correct: bool) -> str | None:
    """Date files from the future to the present, in the same order.

    Args:
        times: modification times of files and directories, in seconds since 1970.
        may_correct: if false, files are only named.

    Returns:
        A message; None if no file is more than `TOLERANCE` ahead of the clock.
    """
    now = time.time()
    # The order decides which jobs run. So files are corrected within the tolerance too, or not one.
    future = {file: mtime for file, mtime in times.items() if mtime > now}
    ahead = max(future.values(), default=now) - now
    if ahead <= TOLERANCE:
        return None
    count = "1 file is" if len(future) == 1 else f"{len(future)} files are"
    first = max(future, key=future.__getitem__)
    problem = (
        f"{count} dated in the future, by up to {format_duration(ahead)} ({first}): the clock of "
        "this or another machine is wrong."
    )
    if not may_correct:
        return f"{problem} A run will date them to the present."
    carriers = {file: carrier(Path(file)) for file in future}
    if any(path.is_symlink() or not is_own(path) for path in carriers.values()):
        return (
            f"{problem} Until that time, changes of inputs may go unnoticed. Correct the clock, "
            "and `touch` the files."
        )
    places = {mtime: place for place, mtime in enumerate(sorted(set(future.values())))}
    for file, mtime in future.items():
        os.utime(carriers[file], times=(now, now + STEP * places[mtime]))
    return f"{problem} They are dated to the present now. Correct the clock."


def carrier(path: Path) -> Path:
    """Return the file whose time Snakemake takes for that of a file or directory."""
    timestamp = path / ".snakemake_timestamp"
    return timestamp if timestamp.exists() else path


def is_own(path: Path) -> bool:
    """Whether this user may set the times of a file."""
    return os.geteuid() in (0, path.stat().st_uid)


def clock_message(directory: Path, mtime: float) -> str | None:
    """Describe a file system with another clock; None if the clocks agree.

    Args:
        directory: a directory of the file system.
        mtime: the time of a file that was written there just now.
    """
    difference = mtime - time.time()
    if abs(difference) <= TOLERANCE:
        return None
    direction = "ahead of" if difference > 0 else "behind"
    return (
        f"The clock of the file system of {directory} is {format_duration(abs(difference))} "
        f"{direction} this machine's. Results are kept, but changes of inputs may go unnoticed. "
        "Synchronise the clocks, for example with NTP."
    )
