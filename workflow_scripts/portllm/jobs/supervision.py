"""Run a job's command to its end, and stop it if the Snakemake that waits for it has ended."""

import ctypes
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from portllm.errors import InputError
from portllm.jobs import processes, signals

log = logging.getLogger(__name__)

SNAKEMAKE_PID = "PORTLLM_SNAKEMAKE_PID"
"""Environment variable: process id of the Snakemake that runs the workflow."""
GRACE = "PORTLLM_GRACE_SECONDS"
"""Environment variable: seconds between SIGTERM and SIGKILL for a command."""
DEFAULT_GRACE = 300.0
"""Seconds; enough to write a 7B model and its optimizer state to a slow disk."""
LEFT_OVER_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL for processes that a command leaves behind."""

_PR_SET_CHILD_SUBREAPER = 36
_TICK_SECONDS = 1.0


class SnakemakeGoneError(Exception):
    """The Snakemake that started the job has ended."""


def grace_seconds(environment: Mapping[str, str]) -> float:
    """Read how many seconds a command may take to end after SIGTERM.

    Raises:
        InputError: the environment variable is not a number.
    """
    value = environment.get(GRACE, str(DEFAULT_GRACE))
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{GRACE}: found {value!r}, expected a number of seconds") from None


class SnakemakeProcess:
    """The Snakemake that waits for this process, and the processes in between."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Find Snakemake among the ancestors of this process.

        Raises:
            SnakemakeGoneError: it has ended already.
        """
        self._parent = os.getppid()
        self._processes: dict[int, str | None] = {}
        snakemake_pid = environment.get(SNAKEMAKE_PID, "")
        if not snakemake_pid.isdigit():
            return  # started by hand
        ancestor, between = self._parent, []
        while ancestor > 1 and ancestor != int(snakemake_pid):
            between.append(ancestor)
            ancestor = processes.parent(ancestor)
        if ancestor == int(snakemake_pid):
            self._processes = {pid: processes.start_time(pid) for pid in [*between, ancestor]}
        elif processes.start_time(int(snakemake_pid)) is None:
            raise SnakemakeGoneError

    def is_gone(self) -> bool:
        """Whether Snakemake, or the shell in between, has ended."""
        return any(processes.start_time(pid) != start for pid, start in self._processes.items())

    def check(self) -> None:
        """Raise SnakemakeGoneError if Snakemake has ended."""
        if self.is_gone():
            raise SnakemakeGoneError


def memory_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Count the processes that the kernel has killed for lack of memory since boot."""
    try:
        fields = dict(line.split() for line in counters.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("oom_kill", 0))


def _prctl(option: int, value: int) -> None:
    # Kernels other than Linux lack prctl. There, only the locks guard against orphans.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """List the child processes, including adopted orphans."""
    return [
        process for process in processes.all_processes() if processes.parent(process) == os.getpid()
    ]


def _none_left() -> bool:
    """Reap children that have ended; return whether no other children are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _signal(targets: Sequence[int], number: int) -> None:
    for process in targets:
        with suppress(ProcessLookupError):
            os.kill(process, number)


class _Command:
    """The command, in its own process group, and the time at which it must have stopped."""

    def __init__(self, process: subprocess.Popen[bytes], grace: float) -> None:
        self.process = process
        self.grace = grace
        self.deadline: float | None = None
        self.killed = False

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the command to stop within the grace period."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.grace
        self.send(number)

    def check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline and not self.killed:
            self.killed = True
            log.error("the command did not stop within %g s; killing it", self.grace)
            self.send(signal.SIGKILL)

    def end_orphans(self) -> None:
        """End processes that the command left behind: they may be using the device."""
        deadline = self.deadline or time.monotonic() + min(LEFT_OVER_SECONDS, self.grace)
        is_terminated = False
        while not _none_left():
            is_late = self.killed or time.monotonic() >= deadline
            if is_late or not is_terminated:
                is_terminated = True
                _signal(_children(), signal.SIGKILL if is_late else signal.SIGTERM)
            time.sleep(0.05)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    snakemake: SnakemakeProcess,
    grace: float,
    keep_open: Sequence[int] = (),
) -> tuple[int, bool]:
    """Run a command to its end. Nothing that the command starts outlives it.

    SIGTERM and SIGINT are passed on. If Snakemake or the terminal disappears, the command gets
    SIGTERM. If this process is killed, the kernel sends the command SIGTERM.

    Args:
        command: the program and its arguments.
        environment: the command's environment.
        snakemake: the Snakemake that waits for the command.
        grace: seconds from the first signal until the command is killed.
        keep_open: file descriptors that the command inherits.

    Returns:
        The exit status (−n if signal n ended the command), and whether the command was told to
        stop.

    Raises:
        InputError: there is no such command.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    # The handlers do nothing: the signals arrive through the pipe.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Signals that nohup or a shell ignores stay ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            pass_fds=keep_open,
            start_new_session=True,
            preexec_fn=signals.ends_with_its_parent(),
        )
    except OSError as error:
        raise InputError(f"{command[0]}: {error.strerror}") from None
    job = _Command(process, grace)
    while process.poll() is None:
        select.select([awake], [], [], _TICK_SECONDS)
        with suppress(BlockingIOError):
            for number in os.read(awake, 256):
                if number in (signal.SIGTERM, signal.SIGINT):
                    job.stop(number)
                elif number == signal.SIGHUP:
                    job.stop()
        if job.deadline is None and snakemake.is_gone():
            log.error("Snakemake has ended; stopping the command within %g s", grace)
            job.stop()
        job.check_deadline()
    job.end_orphans()
    return process.returncode, job.deadline is not None
