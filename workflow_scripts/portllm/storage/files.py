"""Files and directories that appear whole or not at all, their sizes and content hashes."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from portllm.errors import InputError


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a new directory beside `path` that takes its place when the block ends without error.

    An existing `path` is replaced only at that moment; on an error it is left as it was. Under its
    own name it is whole or absent, never half deleted.
    """
    partial = _partial(path)
    # What processes that were killed have left, under this number or another.
    for left in path.parent.glob(f".{path.name}.partial-*"):
        if left == partial or not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.is_symlink():
        # What other checkouts share stays as it is.
        path.unlink()
        partial.rename(path)
    elif path.exists():
        replaced = path.with_name(f".{path.name}.partial-replaced-{os.getpid()}")
        path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced)
    else:
        partial.rename(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path` that replaces it when the block ends well.

    It is on the disk, not only in memory, before it does.
    """
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush a directory, or anything.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def flush_directory(directory: Path) -> None:
    """Wait until all files below `directory` are on the disk.

    To be called before something is deleted that could make them again.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            _flush(path)
    _flush(directory)
    _flush(directory.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; the file appears whole."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises InputError, naming the file, when it is absent or cut off.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not whole JSON ({error})") from None


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; return how many."""
    count = 0
    with whole_file(path) as partial, partial.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, naming file and line where one is cut off."""
    try:
        file = path.open()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is not whole JSON ({error})") from None


def sizes(directory: Path, *, leave_out: frozenset[str] = frozenset()) -> dict[str, int]:
    """Bytes of every file below `directory`, by its path relative to it."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }


def misfit(directory: Path, expected: Mapping[str, int]) -> str | None:
    """Say which file below `directory` is missing or has another size than it had; None if none."""
    for name, size in expected.items():
        try:
            found = (directory / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, {size:,} were written"
    return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a plain value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(
    directory: Path,
    *,
    leave_out: frozenset[str] = frozenset(),
    known: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Hash every file below `directory`, by its path relative to it.

    Files whose hash is `known` are not read.
    """
    found = {
        str(path.relative_to(directory)): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }
    return {name: known.get(name) or hash_file(path) for name, path in found.items()}


# safetensors passes the system's words on; PyTorch's writers have their own.
_WORDS_OF_A_FULL_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    "basic_ios::clear: iostream error",
)


def told_disk_is_full(error: BaseException | None) -> str | None:
    """What an error says about a full disk, in one line; None where it is about something else.

    PyTorch and safetensors report it as errors of their own, without the system's number for it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}"
        if any(words in str(error) for words in _WORDS_OF_A_FULL_DISK):
            return "No space left on device"
        error = error.__cause__ or error.__context__
    return None


def free_bytes(path: Path) -> int:
    """Free bytes on the file system where `path` is or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
