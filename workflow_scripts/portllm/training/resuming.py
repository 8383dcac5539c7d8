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
"""Written last into a checkpoint: sizes and SHA-256 of its files, cost of the training so far."""
LOCK = "in_use"
KEPT = 2
"""Checkpoints that a training keeps; the older one is used if the newer is damaged."""
SAVE_STEPS = 200
"""Default number of steps between checkpoints."""
_DAMAGED = "damaged-"
"""Prefix of a damaged checkpoint. No trainer looks for checkpoints of this name."""


def seal(checkpoint: Path, **details: Any) -> None:
    """Mark a checkpoint as complete, once all of it is on the disk."""
    files.flush_directory(checkpoint)
    not_content = frozenset({SEAL})
    record = {
        "sizes": files.sizes(checkpoint, exclude=not_content),
        # One more pass over bytes that are still in the page cache.
        "content": files.hash_files(checkpoint, exclude=not_content),
    }
    files.write_json(checkpoint / SEAL, {**details, **record})


def damage(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is complete."""
    if not (checkpoint / SEAL).exists():
        return "it is incomplete"
    try:
        record = files.read_object(checkpoint / SEAL, sizes=dict, content=dict)
        sizes, hashes = record.get("sizes", {}), record.get("content", {})
        if not sizes or sizes.keys() != hashes.keys():
            return f"{SEAL} does not list the size and the SHA-256 of each file"
        stored = chain.from_iterable(map(finite.stored, sorted(checkpoint.glob("*.safetensors"))))
        return (
            files.size_mismatch(checkpoint, sizes)
            or files.hash_mismatch(checkpoint, hashes)
            or finite.problem(stored, "tensors")
        )
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

    Later checkpoints are logged. Incomplete ones are removed, because they may fill the disk, and
    damaged ones are renamed.
    """
    checkpoints = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()]
    for checkpoint in sorted(checkpoints, key=_step, reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        if not (checkpoint / SEAL).exists():
            log.warning("removing the incomplete checkpoint %s", checkpoint)
            shutil.rmtree(checkpoint)
            continue
        aside = checkpoint.with_name(_DAMAGED + checkpoint.name)
        log.warning("setting the damaged checkpoint aside: %s: %s", checkpoint, problem)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
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
