"""Locks on files (flock), which the kernel releases when the last holder ends, however it ends."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.1


class LockingUnsupportedError(Exception):
    """The file system has no locks, as some network file systems."""


def try_lock(path: Path, *, shared: bool = False, mode: int = 0o666) -> int | None:
    """Lock a file without waiting. The file is created if it is missing.

    Args:
        path: the lock file. Its directory must exist.
        shared: whether others may hold a shared lock at the same time.
        mode: permissions of a new lock file, before the umask.

    Returns:
        A descriptor that holds the lock until it is closed here and in every process that
        inherited it. None while another process holds the lock.

    Raises:
        LockingUnsupportedError: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise LockingUnsupportedError(error.strerror) from None
        # The file may have been removed between opening and locking. A lock on a removed file
        # excludes nobody.
        try:
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def wait_for_lock(path: Path, on_wait: Callable[[], None]) -> int:
    """Lock a file exclusively, waiting until it is free. Missing directories are created.

    Args:
        path: the lock file. The previous holder may remove it, and its directory.
        on_wait: called once, before the first wait.

    Returns:
        A descriptor that holds the lock, as `try_lock` does.

    Raises:
        LockingUnsupportedError: the file system has no locks.
    """
    is_waiting = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = try_lock(path)
        except FileNotFoundError:  # its holder has just removed the directory
            continue
        if descriptor is not None:
            return descriptor
        if not is_waiting:
            is_waiting = True
            on_wait()
        time.sleep(POLL_SECONDS)
