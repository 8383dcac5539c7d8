"""Pass signals on to child processes, and end children together with their parent."""

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
    """Have the kernel send this process a signal when its parent ends, however it ends."""
    with suppress(AttributeError, OSError):  # Linux only; elsewhere an orphan keeps running
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def ends_with_its_parent() -> Callable[[], None]:
    """Return a `preexec_fn` with which a child gets SIGTERM when this process is killed."""
    parent = os.getpid()

    def arrange() -> None:
        # Until exec, the child still has the parent's handler.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        receive_when_parent_ends(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return arrange


def end_workers_with_this_process() -> None:
    """Have the kernel kill all processes that are forked from now on when this one ends.

    Libraries fork workers that would otherwise wait forever for their parent and keep its files
    open.
    """
    os.register_at_fork(after_in_child=lambda: receive_when_parent_ends(signal.SIGKILL))


@contextmanager
def passing_on_signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Send SIGTERM to child processes when this process gets SIGTERM or SIGINT.

    Yields:
        A function that registers a child process.

    Raises:
        SystemExit: at the end of the block, with status 128 + n, if signal n has come.
    """
    received: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.terminate()

    def add(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        if received:
            process.terminate()

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield add
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
