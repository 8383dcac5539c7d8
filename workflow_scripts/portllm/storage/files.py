"""Write files and directories atomically; compute their sizes and content hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from portllm.errors import InputError, shown
from portllm.storage.file_systems import check_no_mount

LARGEST_DOCUMENT = 1 << 28
"""Bytes that a JSON file may have. The largest are tokenizers of some 35 MB."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _partial(path: Path, kind: str = "partial") -> Path:
    # With the host: on a cluster, the process may run on another node.
    return path.with_name(f".{path.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove what killed processes of this host were writing below `directory`; return it."""
    pattern = re.compile(rf"\..*\.partial-(replaced-)?{re.escape(socket.gethostname())}-(\d+)")
    removed = []
    for folder, subfolders, names in os.walk(directory):
        for name in (*subfolders, *names):
            match = pattern.fullmatch(name)
            if match and not Path("/proc", match[2]).exists():
                removed.append(Path(folder, name))
        # Not those of running processes either: they may contain more.
        subfolders[:] = [name for name in subfolders if not pattern.fullmatch(name)]
    for path in removed:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Write a directory atomically.

    Yields a temporary directory next to `path`, which replaces `path` when the block succeeds.
    If the block raises, `path` stays as it is and the temporary directory is removed. If the
    process is killed, `path` is complete or absent, never partly deleted.

    Raises:
        InputError: something is mounted at `path` or below, so that it cannot be replaced.
    """
    check_no_mount(path)
    partial = _partial(path)
    # Leftovers of killed processes. Process ids are reused, so ours may be among them.
    for leftover in path.parent.glob(f".{path.name}.partial-*"):
        if leftover == partial or not Path("/proc", leftover.name.rpartition("-")[2]).exists():
            shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.is_symlink():
        # The target of the link is shared with other checkouts, so only the link is removed.
        path.unlink()
        partial.rename(path)
    elif path.exists():
        replaced = _partial(path, "partial-replaced")
        path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced)
    else:
        partial.rename(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Yields a temporary path next to `path`. When the block succeeds, the file is flushed to disk
    and replaces `path`; otherwise it is removed.
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
        # Some file systems cannot fsync directories, or do not support fsync at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def flush_directory(directory: Path) -> None:
    """Flush every file below `directory` to disk.

    Call this before you delete the checkpoints from which the files could be rebuilt.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            _flush(path)
    _flush(directory)
    _flush(directory.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    A FIFO would block until somebody writes to it, and a device may never end.

    Raises:
        InputError: the file is missing, cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: expected a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, *, most: int = LARGEST_DOCUMENT) -> str:
    """Read a small UTF-8 file of at most `most` bytes.

    Raises:
        InputError: as `open_regular`, or the file is too large or not UTF-8.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path}: found {size:,} bytes, expected at most {most:,}")
        content = file.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found bytes that are not UTF-8 ({error})") from None


def parse_json(text: str, place: str) -> Any:
    """Parse JSON; raises InputError, which starts with `place`, where it is not valid."""
    try:
        value = json.loads(text)
        # Half of a surrogate pair can be parsed but not written.
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: invalid JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{place}: invalid JSON (nested too deeply)") from None
    except UnicodeError:
        raise InputError(f"{place}: invalid JSON (text that is not Unicode)") from None
    except ValueError:  # Python's limit for the conversion of integers
        raise InputError(f"{place}: invalid JSON (a number of over 4,300 digits)") from None
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: as `read_text`, or the file is not valid JSON.
    """
    return parse_json(read_text(path), str(path))


def read_object(path: Path, **types: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        types: the types of the keys that the caller uses. A key may be absent.

    Raises:
        InputError: as `read_json`, or the file holds something else.
    """
    value = read_json(path)
    check_object(value, str(path), **types)
    return value


def check_object(value: Any, place: str, **types: type | tuple[type, ...]) -> None:
    """Raise InputError, which starts with `place`, unless a value is an object with such keys."""
    if not isinstance(value, dict):
        raise InputError(f"{place}: found {shown(value)}, expected an object")
    for key, expected in types.items():
        kinds = expected if isinstance(expected, tuple) else (expected,)
        found = value.get(key)
        # JSON's true is no number, but Python's is.
        fits = isinstance(found, kinds) and (bool in kinds or not isinstance(found, bool))
        if key in value and not fits:
            names = " or ".join(_JSON_TYPES[kind] for kind in kinds)
            raise InputError(f"{place}: {key}: found {shown(found)}, expected {names}")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object per line, atomically; return the number of rows."""
    count = 0
    with whole_file(path) as partial, partial.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file.

    Raises:
        InputError: the file is missing, or a line is not valid JSON.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: invalid JSON in line {number} ({error})") from None


def _files_below(directory: Path, exclude: frozenset[str]) -> dict[str, Path]:
    return {
        str(path.relative_to(directory)): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in exclude
    }


def sizes(directory: Path, *, exclude: frozenset[str] = frozenset()) -> dict[str, int]:
    """Map every file below `directory` (relative path) to its size in bytes.

    Files whose name is in `exclude` are skipped.
    """
    return {name: path.stat().st_size for name, path in _files_below(directory, exclude).items()}


def leaves_directory(name: str) -> bool:
    """Whether a relative path in a manifest leads out of the manifest's directory."""
    path = Path(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name


def size_mismatch(directory: Path, expected: Mapping[str, int]) -> str | None:
    """Describe the first file that is missing, elsewhere or of another size; None if all match.

    Args:
        directory: the directory to check.
        expected: sizes in bytes by relative path, as `sizes` returns them.
    """
    for name, size in expected.items():
        if leaves_directory(name):
            return f"its manifest names {name}, which is outside of it"
        try:
            actual = (directory / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if actual != size:
            expected_size = f"{size:,}" if isinstance(size, int) else shown(size)
            return f"{name} has {actual:,} bytes, expected {expected_size}"
    return None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """Return the SHA-256 of a value's JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(
    directory: Path,
    *,
    exclude: frozenset[str] = frozenset(),
    known: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Map every file below `directory` (relative path) to its SHA-256.

    Args:
        directory: the directory to hash.
        exclude: names of files to skip.
        known: hashes by relative path that were computed earlier; these files are not read.
    """
    paths = _files_below(directory, exclude)
    return {name: known.get(name) or hash_file(path) for name, path in paths.items()}


def hash_mismatch(directory: Path, expected: Mapping[str, str]) -> str | None:
    """Describe the first file whose content has changed; None if all match.

    Args:
        directory: the directory to check.
        expected: SHA-256 by relative path, as `hash_files` returns them.

    Raises:
        InputError: a file is missing or no regular file.
    """
    for name, digest in expected.items():
        if leaves_directory(name):
            return f"its manifest names {name}, which is outside of it"
        if hash_file(directory / name) != digest:
            return f"the content of {name} does not match its manifest"
    return None
