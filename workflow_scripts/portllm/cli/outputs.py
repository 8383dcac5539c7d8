"""Outputs of a request: which existing directories they may replace."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import manifests
from portllm.storage.file_systems import check_no_mount, real_path
from portllm.storage.files import hash_value, read_json, size_mismatch

_Identity = tuple[int, int, str]
"""Device and inode of a directory, and the path below it that does not exist yet."""


def _identity(path: Path) -> _Identity:
    """Identify a place: equal for all paths to it, through links and bind mounts too."""
    resolved = real_path(path)
    existing = next(place for place in (resolved, *resolved.parents) if place.exists())
    status = existing.stat()
    return status.st_dev, status.st_ino, str(resolved.relative_to(existing))


def _identities(path: Path) -> set[_Identity]:
    """Identify a place and all directories that contain it."""
    resolved = real_path(path)
    return {_identity(place) for place in (resolved, *resolved.parents)}


def _linked_directories(directory: Path) -> set[Path]:
    """Return the directories of the files that an input links to."""
    files = directory.iterdir() if directory.is_dir() else ()
    return {real_path(path).parent for path in files if path.is_symlink()}


def check_outputs(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError for outputs that would destroy or change anything but their predecessors.

    An output may replace an empty directory, or one that `check_replaceable` accepts. It neither
    contains an input or another output, nor is inside one.
    """
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            if _identity(output) == _identity(other):
                raise InputError(f"two outputs are the same directory: {other} and {output}")
            if _identity(output) in _identities(other) or _identity(other) in _identities(output):
                raise InputError(
                    f"{output} and {other}: one output contains the other; choose another directory"
                )
    directories = list(inputs)
    linked = {place for directory in directories for place in _linked_directories(directory)}
    for output in outputs:
        if any(_identity(output) in _identities(place) for place in (*directories, *linked)):
            raise InputError(f"{output}: contains an input; choose another directory")
        for directory in directories:
            # The output would be hashed as a part of the input.
            if _identity(directory) in _identities(output):
                raise InputError(
                    f"{output}: is inside the input {directory}; choose another directory"
                )
        check_replaceable(output)


def check_replaceable(output: Path) -> None:
    """Raise InputError unless an output is absent, empty or verifiably written by this program.

    It is if a transplant's manifest lists all files in it, with their sizes.
    """
    if not output.exists():
        return
    check_no_mount(output)
    if output.is_dir() and not any(output.iterdir()):
        return
    problem = _difference_from_manifest(output) if output.is_dir() else "it is a file"
    if problem is not None:
        raise InputError(
            f"{output}: already exists and was not written by portllm, or changed since: "
            f"{problem}; remove it, or choose another directory"
        )


def _difference_from_manifest(directory: Path) -> str | None:
    """Describe how a directory differs from what its manifest lists; None if it does not."""
    if not (directory / manifests.NAME).is_file():
        return f"it has no {manifests.NAME}"
    try:
        manifest = read_json(directory / manifests.NAME)
        content, sizes = manifest["content"], manifest["sizes"]
        is_own = manifest["stage"] == "transplant" and manifest["content_hash"] == hash_value(
            content
        )
        if not (is_own and content.keys() == sizes.keys()):
            return f"{manifests.NAME} is not that of a transplant"
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{manifests.NAME} is not that of a transplant"
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        is_listed = name in content or path.name in manifests.NOT_CONTENT
        if path.is_symlink() or not (path.is_dir() or (path.is_file() and is_listed)):
            return f"{manifests.NAME} does not list {name}"
    return size_mismatch(directory, sizes)
