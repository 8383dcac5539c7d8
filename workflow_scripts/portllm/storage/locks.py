"""Locks on files (flock), which the kernel releases when the last holder ends, however it ends."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from portllm.errors import InputError

POLL_SECONDS = 0.1


class LockingUnsupportedError(Exception):
    """The file system has no locks, as some network file systems."""


def _open(path: Path, mode: int) -> int:
    """Open a lock file, or create it.

    Its holder may write to the file, so it must not be another file: no link is followed, a FIFO
    is not waited for, and a file with a second name is refused.

    Raises:
        InputError: the path is something else than a regular file with one name.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except FileNotFoundError:
        raise
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        problem = "it is a symbolic link" if is_link else error.strerror
        raise InputError(f"{path}: not usable as a lock file ({problem})") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise InputError(f"{path}: not a file, or linked to another; remove it")
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError as error:
        os.close(descriptor)
        raise LockingUnsupportedError(error.strerror) from None
    return True


def try_lock(path: Path, *, mode: int = 0o666) -> int | None:
    """Lock a file without waiting. The file is created if it is missing.

    Args:
        path: the lock file. Its directory must exist.
        mode: permissions of a new lock file, before the umask.

    Returns:
        A descriptor that holds the lock until it is closed here and in every process that
        inherited it. None while another process holds the lock.

    Raises:
        InputError: the path is not usable as a lock file.
        LockingUnsupportedError: the file system has no locks.
    """
    while True:
        descriptor = _open(path, mode)
        if not _lock(descriptor):
            return None
        # The file may have been removed between opening and locking. A lock on a removed file
        # excludes nobody.
        try:
            if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def try_lock_directory(directory: Path) -> int | None:
    """Lock a directory without waiting, which no file in it stands for.

    Returns:
        A descriptor, as `try_lock` does.

    Raises:
        LockingUnsupportedError: the file system has no locks on directories, as NFS.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    return descriptor if _lock(descriptor) else None


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
