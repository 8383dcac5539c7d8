"""Temporary directories that a later process removes if their owner was killed.

The owner holds a lock on a file inside the directory. The kernel releases the lock when the owner
and every process that inherited it have ended, so `sweep` removes only what nobody uses.
"""

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import locks

JOB = "portllm-job-"
"""Prefix of a job's temporary directory."""
SNAKEMAKE = "snakemake"
"""Prefix of Snakemake's temporary directory."""
UNOWNED_SECONDS = 3600
"""Age of a directory without an owner: it was killed before it could lock anything."""
OWNER = ".portllm-owner"
"""File in a temporary directory that its owner has locked. It lists what else to remove."""


def own(directory: Path, also: Iterable[Path] = ()) -> int | None:
    """Lock a temporary directory until this process ends.

    Args:
        directory: the directory. Its owner is this process from now on.
        also: further directories that `sweep` removes together with it.

    Returns:
        The descriptor that must stay open; None if the file system has no locks.
    """
    marker = directory / OWNER
    # Renamed when it is locked: `sweep` takes a marker without a lock for that of a dead process.
    new = directory / f"{OWNER}.new"
    try:
        descriptor = locks.try_lock(new, mode=0o600)
    except locks.LockingUnsupportedError:
        return None
    if descriptor is not None:
        os.pwrite(descriptor, json.dumps([str(path.absolute()) for path in also]).encode(), 0)
        new.rename(marker)
    return descriptor


@contextmanager
def owned_directory(parent: Path, prefix: str) -> Iterator[tuple[Path, int | None]]:
    """Create a private temporary directory and remove it at the end.

    Yields its path and the descriptor of its lock, which processes may inherit that use it too.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    descriptor = None
    try:
        descriptor = own(directory)
        yield directory, descriptor
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def sweep(parent: Path, *prefixes: str) -> list[Path]:
    """Remove this user's temporary directories whose owner has ended; return them.

    Args:
        parent: the directory that holds them.
        prefixes: how their names begin.
    """
    removed: list[Path] = []
    for directory in sorted(parent.iterdir()):
        if not directory.name.startswith(prefixes):
            continue
        # It may vanish meanwhile, hold a cut record or be on a file system without locks.
        with suppress(OSError, ValueError, InputError, locks.LockingUnsupportedError):
            if not _is_own_directory(directory):
                continue
            if (directory / OWNER).exists():
                removed += _remove_abandoned(directory)
            # Other workflows' Snakemake has no such file.
            elif not directory.name.startswith(SNAKEMAKE) and _age(directory) > UNOWNED_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
    return removed


def _is_own_directory(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def _remove_abandoned(directory: Path) -> list[Path]:
    descriptor = locks.try_lock(directory / OWNER)
    if descriptor is None:
        return []
    try:
        also = [Path(name) for name in json.loads(os.pread(descriptor, 1 << 16, 0) or b"[]")]
        removed = [path for path in (*also, directory) if path.exists() and _is_own_directory(path)]
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
    return removed
