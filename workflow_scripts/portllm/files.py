"""Files and directories that appear whole or not at all, and their content hashes."""

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

    An existing `path` is replaced only at that moment; on an error it is left as it was.
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
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path` that replaces it when the block ends well."""
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
