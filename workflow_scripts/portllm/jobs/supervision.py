"""Running a job's command to its end, and ending it when those who wanted it are gone."""

import ctypes
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from portllm.errors import InputError
from portllm.jobs import signals

log = logging.getLogger(__name__)

ENGINE = "PORTLLM_ENGINE"
"""Environment variable: the process of the Snakemake that has parsed the workflow."""
GRACE = "PORTLLM_GRACE_SECONDS"
"""Environment variable: seconds that a command gets between SIGTERM and SIGKILL."""
DEFAULT_GRACE = 300.0
"""Seconds; enough to write the checkpoint of a 7B model with its optimizer to a slow disk."""
LEFT_OVER_SECONDS = 10.0
"""Seconds that processes get that a command has left behind."""

_PR_SET_CHILD_SUBREAPER = 36
_TICK_SECONDS = 1.0


class SnakemakeGoneError(Exception):
    """Nobody waits for the job any more."""


def grace_seconds(environment: Mapping[str, str]) -> float:
    """How long a command may take to end after SIGTERM."""
    given = environment.get(GRACE, str(DEFAULT_GRACE))
    try:
        return float(given)
    except ValueError:
        raise InputError(f"{GRACE}: found {given!r}, expected a number of seconds") from None


def _stat(process: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; empty where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(process: int) -> int:
    fields = _stat(process)
    return int(fields[1]) if fields else 0


def _start_time(process: int) -> str | None:
    """When a process was started: tells it from a later one of the same number."""
    fields = _stat(process)
    return None if not fields or fields[0] in "ZX" else fields[19]


class SnakemakeProcess:
    """The Snakemake that waits for this process, and what lies between."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Find it among the ancestors; raises SnakemakeGoneError where it is gone already."""
        self._parent = os.getppid()
        self._processes: dict[int, str | None] = {}
        given = environment.get(ENGINE, "")
        if not given.isdigit():
            # Started by hand.
            return
        ancestor, between = self._parent, []
        while ancestor > 1 and ancestor != int(given):
            between.append(ancestor)
            ancestor = _parent(ancestor)
        if ancestor == int(given):
            self._processes = {pid: _start_time(pid) for pid in [*between, ancestor]}
        elif _start_time(int(given)) is None:
            raise SnakemakeGoneError

    def is_gone(self) -> bool:
        """Whether Snakemake has ended, or the shell in between, so that nobody waits."""
        return any(_start_time(pid) != start for pid, start in self._processes.items())

    def check(self) -> None:
        """Raise SnakemakeGoneError where `is_gone`."""
        if self.is_gone():
            raise SnakemakeGoneError


def memory_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes this machine has killed for lack of memory since it was started."""
    try:
        fields = dict(line.split() for line in counters.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("oom_kill", 0))


def _prctl(option: int, value: int) -> None:
    # Where the kernel has no such thing, only the locks protect what a killed wrapper leaves.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Processes whose parent is this one, orphans that it has adopted included."""
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [process for process in processes if _parent(process) == os.getpid()]


def _none_left() -> bool:
    """Reap children that have ended; whether there are no others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _signal(processes: Sequence[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


class _Command:
    """The command in a process group of its own, and when it was told to stop."""

    def __init__(self, process: subprocess.Popen[bytes], grace: float) -> None:
        self.process = process
        self.grace = grace
        self.deadline: float | None = None
        self.killed = False

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the command to stop; from now on it has its time of grace."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.grace
        self.send(number)

    def check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline and not self.killed:
            self.killed = True
            log.error("it has not stopped within %g s and is killed", self.grace)
            self.send(signal.SIGKILL)

    def end_what_is_left(self) -> None:
        """End what the command has started and left behind: it may be using the device."""
        deadline = self.deadline or time.monotonic() + min(LEFT_OVER_SECONDS, self.grace)
        told = False
        while not _none_left():
            late = self.killed or time.monotonic() >= deadline
            if late or not told:
                told = True
                _signal(_children(), signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.05)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    engine: SnakemakeProcess,
    grace: float,
    keep_open: Sequence[int] = (),
    every_hour: Callable[[], None] = lambda: None,
) -> tuple[int, bool]:
    """Run a command; return its status (−n: ended by signal n), and whether it was told to stop.

    SIGTERM and SIGINT are passed on. When the engine or the terminal is gone, the command gets
    SIGTERM. From the first of these on it has `grace` seconds, then it is killed. When this
    process itself is killed, the command gets SIGTERM from the kernel. The descriptors `keep_open`
    stay open in the command. Nothing that the command has started outlives it.

    Raises InputError where there is no such command.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    # Handlers that do nothing: the signals arrive through the pipe.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # What nohup or a shell has told to be ignored stays ignored.
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
    hour = time.monotonic()
    while process.poll() is None:
        select.select([awake], [], [], _TICK_SECONDS)
        with suppress(BlockingIOError):
            for number in os.read(awake, 256):
                if number in (signal.SIGTERM, signal.SIGINT):
                    job.stop(number)
                elif number == signal.SIGHUP:
                    job.stop()
        if job.deadline is None and engine.is_gone():
            log.error("Snakemake is gone: the command is told to stop, with %g s for it", grace)
            job.stop()
        job.check_deadline()
        if time.monotonic() > hour + 3600:
            hour = time.monotonic()
            every_hour()
    job.end_what_is_left()
    return process.returncode, job.deadline is not None
