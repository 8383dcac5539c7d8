"""Checkpoints of a training that was interrupted: which of them are whole, and who uses them."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import files

log = logging.getLogger(__name__)

SEAL = "whole.json"
"""Written last into a checkpoint: the sizes of its files, and what the training has cost so far."""
LOCK = "in_use"
KEPT = 2
"""How many checkpoints a training keeps: while one is written, and if it is damaged, another is."""
SAVE_STEPS = 200
"""Steps between checkpoints of a training that does not say it."""


def seal(checkpoint: Path, **about: Any) -> None:
    """Mark a checkpoint as whole, once all of it is on the disk."""
    files.flush_directory(checkpoint)
    sizes = files.sizes(checkpoint, exclude=frozenset({SEAL}))
    files.write_json(checkpoint / SEAL, {**about, "sizes": sizes})


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    if not (checkpoint / SEAL).exists():
        return "it was not written to its end"
    try:
        return files.size_mismatch(checkpoint, read_seal(checkpoint)["sizes"])
    except InputError as error:
        return str(error)


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """What was written when the checkpoint was sealed; empty where it was not."""
    path = checkpoint / SEAL
    return files.read_json(path) if path.exists() else {}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def last_whole(directory: Path) -> Path | None:
    """The latest checkpoint below `directory` that is whole.

    Later ones that are not are named in the log and removed: nothing can use them, and the disk
    may be full of them.
    """
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()]
    for checkpoint in sorted(found, key=_step, reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("%s is damaged and not used: %s", checkpoint, problem)
        shutil.rmtree(checkpoint)
    return None


@contextmanager
def held(work: Path) -> Iterator[int]:
    """Hold a training's directory; yield a descriptor that a child must inherit to hold it too.

    A process that was left behind by a killed one may still be writing there: it is waited for.
    """
    descriptor = _lock(work)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(work: Path) -> int:
    while True:
        work.mkdir(parents=True, exist_ok=True)
        path = work / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another process is training this; waiting for its end", work)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s)", work, error.strerror)
            return descriptor
        # Who was waited for may have finished and removed the directory, this file with it.
        if path.exists() and path.samefile(f"/proc/self/fd/{descriptor}"):
            return descriptor
        os.close(descriptor)
