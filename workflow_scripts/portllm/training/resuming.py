"""Checkpoints of an interrupted training: which are complete, and which process uses them."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import files, locks
from portllm.weights import finite

log = logging.getLogger(__name__)

SEAL = "whole.json"
"""Written last into a checkpoint: the sizes of its files, and the cost of the training so far."""
LOCK = "in_use"
KEPT = 2
"""Checkpoints that a training keeps; the older one is used if the newer is damaged."""
SAVE_STEPS = 200
"""Default number of steps between checkpoints."""


def seal(checkpoint: Path, **details: Any) -> None:
    """Mark a checkpoint as complete, once all of it is on the disk."""
    files.flush_directory(checkpoint)
    sizes = files.sizes(checkpoint, exclude=frozenset({SEAL}))
    files.write_json(checkpoint / SEAL, {**details, "sizes": sizes})


def damage(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is complete."""
    if not (checkpoint / SEAL).exists():
        return "it is incomplete"
    try:
        mismatch = files.size_mismatch(checkpoint, read_seal(checkpoint)["sizes"])
        stored = chain.from_iterable(map(finite.stored, sorted(checkpoint.glob("*.safetensors"))))
        return mismatch or finite.problem(stored, "tensors")
    except InputError as error:
        return str(error)


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """Read the details of a sealed checkpoint; empty if it is not sealed."""
    path = checkpoint / SEAL
    return files.read_json(path) if path.exists() else {}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def last_complete(directory: Path) -> Path | None:
    """Find the latest complete checkpoint below `directory`; None if there is none.

    Later, damaged checkpoints are logged and removed, because they may fill the disk.
    """
    checkpoints = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()]
    for checkpoint in sorted(checkpoints, key=_step, reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("removing the damaged checkpoint %s: %s", checkpoint, problem)
        shutil.rmtree(checkpoint)
    return None


@contextmanager
def held(work: Path) -> Iterator[list[int]]:
    """Hold a training's directory. Wait while another process, such as an orphan, uses it.

    Yields:
        Descriptors that a child process must inherit to keep the directory held; none if the file
        system has no locks.
    """

    def warn() -> None:
        log.warning("%s: another process is running this training; waiting until it ends", work)

    try:
        descriptors = [locks.wait_for_lock(work / LOCK, warn)]
    except locks.LockingUnsupportedError as error:
        log.warning("%s cannot be locked (%s)", work, error)
        descriptors = []
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
