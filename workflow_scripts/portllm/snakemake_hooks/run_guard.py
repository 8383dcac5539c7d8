"""What the workflow does in the Snakemake process that runs it.

One run at a time works on a results directory; what a killed one has left behind is cleared away;
damaged results are made again; a signal stops the jobs, trainings with a checkpoint, before it
stops the run. Snakemake has no hook between the start of a run and its own lock, but it announces
the start in its log, where `RunGuard` listens.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import psutil
from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence
from snakemake_interface_logger_plugins.common import LogEvent

from portllm.errors import InputError
from portllm.snakemake_hooks import output_cache
from portllm.storage import integrity, locks

LOCK = ".run.lock"
SHELLS = frozenset({"bash", "sh", "dash", "ksh", "zsh"})
SECONDS_BETWEEN_SWEEPS = 0.5


def hold(results: Path) -> int | None:
    """Lock a results directory until this process ends, however it ends.

    Returns:
        The descriptor that must stay open; None if the file system has no locks.

    Raises:
        InputError: another run holds the directory.
    """
    results.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = locks.try_lock(results / LOCK)
    except locks.LockingUnsupportedError:
        return None
    if descriptor is None:
        owner = _describe((results / LOCK).read_text())
        raise InputError(
            f"another Snakemake run is using {results} ({owner}); nothing was started. Wait until "
            "it ends, or stop it"
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.encode(), 0)
    return descriptor


def _describe(owner: str) -> str:
    try:
        return "process {process} on {host}, since {since}".format(**json.loads(owner))
    except (ValueError, KeyError):
        return "just started"


def remove_stale_locks(results: Path, directory: Path = Path(".snakemake/locks")) -> list[Path]:
    """Remove Snakemake's own locks that name results which nobody else is working on.

    To be called by who holds the results. Returns the removed files.
    """
    prefix = f"{results}/"
    stale = [
        path
        for path in sorted(directory.glob("*.lock"))
        if any(line.startswith(prefix) for line in path.read_text().splitlines())
    ]
    for path in stale:
        path.unlink()
    return stale


def mark_incomplete(outputs: list[Path]) -> None:
    """Have Snakemake take outputs for half-made, so that it makes them again."""
    job = SimpleNamespace(output=[IOFile(str(path)) for path in outputs])
    FilePersistence(nolock=True).started(job)


def programs(process: psutil.Process) -> Iterator[psutil.Process]:
    """The programs that a process runs, through shells or directly."""
    try:
        if process.name() not in SHELLS:
            yield process
            return
        for child in process.children():
            yield from programs(child)
    except psutil.NoSuchProcess:
        return


class RunGuard(logging.Handler):
    """Listens to a run's log for its start, and does then what the module says."""

    def __init__(self, workflow: Any, logger: logging.Logger) -> None:
        super().__init__()
        self._workflow = workflow
        self._logger = logger
        self._results = Path(workflow.pathvars.apply("<results>"))
        self._held: int | None = None
        self._stopping = False

    def emit(self, record: logging.LogRecord) -> None:
        """Act on the announcements of the start, and of the jobs to come."""
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED and not self._is_aside():
            try:
                self._begin()
            except InputError as error:
                self._logger.error(f"error: {error}")
                sys.exit(1)
        elif event == LogEvent.RUN_INFO and not self._is_dry():
            self._take_over_signals()

    def _is_dry(self) -> bool:
        return self._workflow.output_settings.dryrun

    def _is_aside(self) -> bool:
        # The plan reads only, and may be asked for while a run is going on.
        return set(self._workflow.dag_settings.targets) == {"plan"}

    def _begin(self) -> None:
        if not self._is_dry() and self._workflow.execution_settings.lock:
            self._lock()
        makers = [rule for rule in self._workflow.rules if rule.output]
        damaged = [
            (path, problem)
            for path, problem in integrity.damaged(self._results)
            if any(rule.is_producer(str(path)) for rule in makers)
        ]
        for path, problem in damaged:
            self._logger.warning(f"{path} is damaged ({problem}) and made again.")
        if damaged and not self._is_dry():
            self._discard_shared([path for path, _ in damaged])
            mark_incomplete([path for path, _ in damaged])

    def _discard_shared(self, outputs: list[Path]) -> None:
        if self._workflow.workflow_settings.cache is None:
            return
        for path in outputs:
            entry = output_cache.discard(path, Path(os.environ[output_cache.VARIABLE]))
            if entry is not None:
                self._logger.warning(f"{entry}, which it is linked from, is removed.")

    def _lock(self) -> None:
        self._held = hold(self._results)
        if self._held is None:
            self._logger.warning(
                f"{self._results} is on a file system without locks: two runs at once on it would "
                "not be noticed."
            )
        elif remove_stale_locks(self._results):
            self._logger.info("An earlier run was killed; what it has left is cleared away.")

    def _take_over_signals(self) -> None:
        self._let_running_jobs_finish = signal.getsignal(signal.SIGTERM)
        # The jobs of a cluster outlive a lost terminal.
        hangup = [signal.SIGHUP] if self._workflow.local_exec else []
        for number in (signal.SIGINT, signal.SIGTERM, *hangup):
            # What nohup or a script's `&` has told to be ignored stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Snakemake takes a lock of its own when it is told to stop, which the code that the signal
        # has interrupted may be holding: that is for another thread.
        again, self._stopping = self._stopping, True
        threading.Thread(target=self._stop_jobs, args=(number, again), daemon=True).start()
        if not self._workflow.local_exec:
            raise KeyboardInterrupt  # on which Snakemake cancels the cluster's jobs

    def _stop_jobs(self, number: int, kill: bool) -> None:
        name = signal.Signals(number).name
        if kill:
            self._logger.warning(f"{name} again: jobs are killed.")
        else:
            self._logger.warning(f"{name}: jobs are stopped; trainings write a checkpoint first.")
            if callable(self._let_running_jobs_finish):
                self._let_running_jobs_finish()
        told: set[int] = set()
        while True:
            for child in psutil.Process().children():
                for program in programs(child):
                    if program.pid not in told:
                        told.add(program.pid)
                        self._tell(program, kill)
            # A job may have been started in this moment.
            time.sleep(SECONDS_BETWEEN_SWEEPS)

    @staticmethod
    def _tell(program: psutil.Process, kill: bool) -> None:
        with suppress(psutil.NoSuchProcess):
            if not kill:
                program.terminate()
                return
            # Those below it first: they would hear of its end with a mere SIGTERM, if at all.
            for process in (*program.children(recursive=True), program):
                process.kill()


def attend(workflow: Any, logger: logging.Logger) -> None:
    """Attend to the run of a workflow; to be called where it is defined.

    Snakemakes that others start for single jobs are left alone.
    """
    if workflow.is_main_process:
        logger.addHandler(RunGuard(workflow, logger))
