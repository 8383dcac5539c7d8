"""Keep the result of a finished training until Snakemake has accepted it.

Snakemake deletes the output of a job that it does not accept, for example because a file server is
slow, or because it was killed while the job ended. The next job then restores the result instead of
training again. Kept results are hard links, so they take no space.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from portllm.errors import InputError
from portllm.jobs.supervision import SNAKEMAKE_PID
from portllm.storage import files, integrity, locks, manifests
from portllm.training.resuming import LOCK

log = logging.getLogger(__name__)

RESULT = "result"
"""Directory in a training's directory of checkpoints: the result."""
RECORD = "result.json"
"""File beside it: the output that the result was written to."""


def _link_files(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and (
            path.name == manifests.NAME or path.name not in manifests.NOT_CONTENT
        ):
            link = target / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)


def keep(work: Path, output: Path) -> None:
    """Flush the result of a training to the disk, and remove the training's checkpoints.

    The result is kept in their place, unless the program was started by hand.

    Args:
        work: the training's directory, which the caller holds.
        output: the result, a directory with a manifest.
    """
    files.flush_directory(output)
    if SNAKEMAKE_PID not in os.environ:
        shutil.rmtree(work)
        return
    files.write_json(work / RECORD, {"output": str(output)})
    try:
        with files.whole_directory(work / RESULT) as directory:
            _link_files(output, directory)
    except OSError as error:
        log.warning("%s cannot be linked (%s); keeping the checkpoints", output, error.strerror)
        return
    for path in work.iterdir():
        if path.name in (RESULT, RECORD, LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def restore(work: Path, output: Path) -> bool:
    """Restore the result of a finished training; return whether there was one.

    Args:
        work: the training's directory, which the caller holds.
        output: where the result goes. A result of another output is left alone.
    """
    result = work / RESULT
    if not result.is_dir() or _output(work) != str(output):
        return False
    problem = integrity.Checker(result.parent, contents=True).damage(result)
    if problem is not None:
        log.warning("removing the damaged result %s: %s", result, problem)
        shutil.rmtree(result)
        return False
    with files.whole_directory(output) as directory:
        _link_files(result, directory)
    files.flush_directory(output)
    log.info("the training had finished, but Snakemake did not accept it; restored its result")
    return True


def _output(work: Path) -> str | None:
    try:
        return files.read_object(work / RECORD, output=str).get("output")
    except InputError:
        return None


def kept(checkpoints: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the directory of each finished training below `checkpoints`, and its output."""
    for record in sorted(checkpoints.glob(f"*/*/{RECORD}")):
        output = _output(record.parent)
        if output is not None:
            yield record.parent, Path(output)


def discard(work: Path) -> None:
    """Remove a training's directory, unless a process holds it."""
    try:
        descriptor = locks.try_lock(work / LOCK)
    except locks.LockingUnsupportedError:
        return
    if descriptor is None:
        return
    try:
        shutil.rmtree(work)
    finally:
        os.close(descriptor)
