"""Processes that hear the signals of the one that has started them, and do not outlive it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1


def receive_when_parent_ends(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, in whatever way."""
    with suppress(AttributeError, OSError):  # Linux has it; elsewhere an orphan runs on
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def ends_with_its_parent() -> Callable[[], None]:
    """A `preexec_fn` with which a child process gets SIGTERM when this process has been killed."""
    parent = os.getpid()

    def arrange() -> None:
        # Until the program is loaded, the handler is still the parent's.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        receive_when_parent_ends(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return arrange


def end_workers_with_this_process() -> None:
    """Have the kernel kill all processes forked from now on when this one ends.

    Libraries fork workers that wait for their parent's words for ever, with its files open.
    """
    os.register_at_fork(after_in_child=lambda: receive_when_parent_ends(signal.SIGKILL))


@contextmanager
def passing_on_signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Send SIGTERM to a process when this one is told to end, and wait for it.

    Yields a function that takes the process. When the block has ended, the program exits with the
    signal's status, whatever status the process has ended with.
    """
    noted: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        for process in processes:
            process.terminate()

    def add(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        if noted:
            process.terminate()

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield add
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if noted:
        sys.exit(128 + noted[0])
