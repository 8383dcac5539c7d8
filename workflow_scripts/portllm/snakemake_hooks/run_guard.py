"""Guard a run of the workflow, in the Snakemake process that runs it.

- Only one run at a time uses a results directory.
- Locks that a killed run has left behind are removed.
- Damaged results, and missing ones that others were made from, are made again.
- A signal, or a closed output pipe, stops the jobs before the run ends. Trainings write a
  checkpoint first.

Snakemake has no hook between the start of a run and its own lock. It announces the start in its
log, so `RunGuard` is a log handler.
"""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from snakemake.io import is_flagged
from snakemake_interface_logger_plugins.common import LogEvent

from portllm.errors import InputError
from portllm.snakemake_hooks import cache_links, clock_skew, not_made, recording, run_end
from portllm.storage import files, integrity, locks, results_manifest, temporary

LOCK = ".run.lock"
STREAM_HANDLER = "DefaultStreamHandler"
"""Snakemake's name of the handler that writes to the terminal."""
SHELLS = frozenset({"bash", "sh", "dash", "ksh", "zsh"})
SECONDS_BETWEEN_SWEEPS = 0.5


def hold(results: Path) -> int | None:
    """Lock a results directory until this process ends, however it ends.

    Returns:
        The descriptor that must stay open; None if the file system has no locks.

    Raises:
        InputError: another run holds the directory, or its lock file is not usable.
    """
    results.mkdir(parents=True, exist_ok=True)
    path = results / LOCK
    try:
        descriptor = locks.try_lock(path)
    except locks.LockingUnsupportedError:
        return None
    if descriptor is None or not _hold_directory(results):
        raise InputError(
            f"another Snakemake run is using {results} ({_owner(path)}); nothing was started. Wait "
            "until it ends, or stop it"
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.encode(), 0)
    return descriptor


def _hold_directory(results: Path) -> bool:
    """Lock the directory as well, so that a removed lock file lets no second run in.

    The descriptor stays open until this process ends. Some file systems, such as NFS, lock only
    files.
    """
    with suppress(locks.LockingUnsupportedError):
        return locks.try_lock_directory(results) is not None
    return True


def _owner(lock: Path) -> str:
    try:
        return "process {process} on {host}, since {since}".format(**json.loads(lock.read_text()))
    except (OSError, ValueError, KeyError):
        return "just started"


def remove_stale_locks(results: Path, directory: Path = Path(".snakemake/locks")) -> list[Path]:
    """Remove Snakemake's own locks on results that the caller holds; return the removed files."""
    prefix = f"{results}/"
    stale = [
        path
        for path in sorted(directory.glob("*.lock"))
        if any(line.startswith(prefix) for line in path.read_text().splitlines())
    ]
    for path in stale:
        path.unlink()
    return stale


def programs(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the programs that a process runs, directly or through shells."""
    try:
        if process.name() not in SHELLS:
            yield process
            return
        for child in process.children():
            yield from programs(child)
    except psutil.NoSuchProcess:
        return


class RunGuard(logging.Handler):
    """Log handler that acts when a run starts and when its jobs are about to start."""

    def __init__(self, workflow: Any, logger: logging.Logger, results: Path, plan: str) -> None:
        super().__init__()
        self._workflow = workflow
        self._plan = plan
        self._logger = logger
        self._results = results
        self.has_begun = False
        self._held: int | None = None
        self._checks_results = False
        self._damaged: dict[Path, str] = {}
        self._stopping = False
        self._has_signals = False

    def emit(self, record: logging.LogRecord) -> None:
        """Act on the announcements of a run and of its jobs."""
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED and not self._only_plans():
            try:
                self._begin()
            except InputError as error:
                self._logger.error(f"error: {error}")
                sys.exit(1)
        elif event == LogEvent.RUN_INFO:
            self._prepare_outputs()
            if not self._is_dry():
                self._take_over_signals()

    def _is_dry(self) -> bool:
        return self._workflow.output_settings.dryrun

    def _only_plans(self) -> bool:
        # The plan may be made while another run uses the results.
        return set(self._workflow.dag_settings.targets) == {self._plan}

    def _begin(self) -> None:
        self._checks_results = True
        if not self._is_dry() and self._workflow.execution_settings.lock:
            self._lock()
        if not self._is_dry():
            run_end.discard_accepted(self._results)
            self.has_begun = True

    def damaged(self) -> dict[Path, str]:
        """Find damaged and missing results of this workflow's rules; describe the damage."""
        return self._compare(integrity.Checker(self._results))

    def _compare(self, checker: integrity.Checker) -> dict[Path, str]:
        problems = dict(cache_links.damaged(self._results, update=not self._is_dry()))
        problems |= checker.damaged()
        return {path: problem for path, problem in problems.items() if self._is_made(path)}

    def _is_made(self, path: Path) -> bool:
        return any(rule.is_producer(str(path)) for rule in self._workflow.rules if rule.output)

    def name_damage(self) -> list[Path]:
        """Name damaged results at the start of a run; return them and the missing ones."""
        if not self._checks_results:
            return []
        checker = integrity.Checker(self._results)
        self._damaged = self._compare(checker)
        if checker.manifest.unreadable_lines:
            place = self._results / results_manifest.NAME
            self._logger.warning(f"{place} is damaged. It will be written again.")
        for path, problem in self._damaged.items():
            # Whether the run needs a missing result is known when its jobs are.
            if problem != integrity.MISSING:
                self._logger.warning(f"{path} is damaged ({problem}). It will be made again.")
        if not self._is_dry():
            # Made by an earlier release, or by jobs that outlived their run.
            checker.record(path for path in checker.unrecorded if self._is_made(path))
        return list(self._damaged)

    def _prepare_outputs(self) -> None:
        """Name missing outputs, and remove damaged ones that their jobs would only update."""
        for job in self._workflow.dag.needrun_jobs():
            for output in job.output:
                problem = self._damaged.pop(Path(output), None)
                if problem == integrity.MISSING:
                    if not not_made.is_set_aside(Path(output), self._results):
                        self._logger.warning(f"{output} is missing. It will be made again.")
                elif problem and is_flagged(output, "update") and not self._is_dry():
                    Path(output).unlink(missing_ok=True)

    def _lock(self) -> None:
        self._held = hold(self._results)
        if self._held is None:
            self._logger.warning(
                f"The file system of {self._results} has no locks. Do not start a second run on it."
            )
            return
        # The lock file has just been written.
        skew = clock_skew.clock_message(self._results, os.fstat(self._held).st_mtime)
        if skew:
            self._logger.warning(skew)
        if remove_stale_locks(self._results):
            self._logger.info("An earlier run was killed. Removed its locks.")
        files.remove_leftovers(self._results)
        temporary.sweep(Path(tempfile.gettempdir()), temporary.SNAKEMAKE, temporary.JOB)

    def _take_over_signals(self) -> None:
        self._let_running_jobs_finish = signal.getsignal(signal.SIGTERM)
        if isinstance(getattr(self._let_running_jobs_finish, "__self__", None), RunGuard):
            # The guard of another study in the same run stops the jobs of both.
            return
        self._has_signals = True
        # Jobs on a cluster outlive a lost terminal.
        hangup = [signal.SIGHUP] if self._workflow.local_exec else []
        for number in (signal.SIGINT, signal.SIGTERM, *hangup):
            # Signals that nohup or a script's `&` ignores stay ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Stopping takes a lock of Snakemake's, which the interrupted code may hold: use a thread.
        again, self._stopping = self._stopping, True
        threading.Thread(target=self._stop_jobs, args=(number, again), daemon=True).start()
        if not self._workflow.local_exec:
            raise KeyboardInterrupt  # makes Snakemake cancel the cluster's jobs

    def _stop_jobs(self, number: int, kill: bool) -> None:
        name = signal.Signals(number).name
        if kill:
            self._logger.warning(f"{name} again: killing the jobs.")
        else:
            self._logger.warning(f"{name}: stopping the jobs. Trainings write a checkpoint first.")
            if callable(self._let_running_jobs_finish):
                self._let_running_jobs_finish()
        signalled: set[int] = set()
        while True:
            for child in psutil.Process().children():
                for program in programs(child):
                    if program.pid not in signalled:
                        signalled.add(program.pid)
                        self._signal(program, kill)
            # A job may have been started since the sweep.
            time.sleep(SECONDS_BETWEEN_SWEEPS)

    @staticmethod
    def _signal(program: psutil.Process, kill: bool) -> None:
        with suppress(psutil.NoSuchProcess):
            if not kill:
                program.terminate()
                return
            # Children first: when their parent ends, they get SIGTERM at most.
            for process in (*program.children(recursive=True), program):
                process.kill()

    def stop_without_output(self) -> None:
        """Stop the jobs and the run after the reader of its output has gone.

        Raises:
            BrokenPipeError: no jobs are running; Snakemake then ends at once.
        """
        if not self._has_signals:
            raise BrokenPipeError
        if not self._stopping:
            os.kill(os.getpid(), signal.SIGTERM)


def watch_output(logger: logging.Logger, on_close: Callable[[], None]) -> None:
    """Call a function when Snakemake can no longer write its log, as in `snakemake … | head`.

    Without this, the thread that reports the end of a job dies of the closed pipe, and Snakemake
    waits for that job for ever.
    """
    for handler in logger.handlers:
        if handler.name == STREAM_HANDLER:
            handler.emit = partial(_emit_or_close, handler.emit, on_close)


def _emit_or_close(
    emit: Callable[[logging.LogRecord], None],
    on_close: Callable[[], None],
    record: logging.LogRecord,
) -> None:
    try:
        emit(record)
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)
        on_close()


def make_again_what_is_damaged(workflow: Any, guard: RunGuard) -> None:
    """Have Snakemake run the jobs of damaged and missing results that its targets need."""
    prepare = workflow._prepare_dag

    def prepare_and_force(*arguments: Any, **settings: Any) -> None:
        damaged = guard.name_damage()
        prepare(*arguments, **settings)
        # Not as `--forcerun`, which makes targets of the files.
        workflow.dag.forcefiles.update(map(str, damaged))

    workflow._prepare_dag = prepare_and_force


def attend(workflow: Any, logger: logging.Logger, results: Path, *, plan: str) -> None:
    """Guard the run of a workflow. Call it where the workflow is defined.

    `results` is the directory to guard, `plan` the name of the rule that only reads.
    Snakemake processes that run a single job for another Snakemake are left alone.
    """
    if workflow.is_main_process:
        guard = RunGuard(workflow, logger, results, plan)
        logger.addHandler(guard)
        if not workflow.output_settings.dryrun:
            logger.addHandler(recording.Recorder(results))
        make_again_what_is_damaged(workflow, guard)
        watch_output(logger, guard.stop_without_output)
        run_end.attend(workflow, logger, results, guard.damaged, lambda: guard.has_begun)
