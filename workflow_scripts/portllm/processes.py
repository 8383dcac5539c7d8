"""Processes that must not outlive the one that has started them."""

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress

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
