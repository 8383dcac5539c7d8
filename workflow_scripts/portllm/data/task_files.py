"""The YAML files of lm-eval's tasks, read without lm-eval.

Importing lm-eval takes seconds and indexing its tasks ten more; a workflow that only wants to know
whether a task exists, and which files define it, reads the files.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from portllm.errors import InputError, nearest
from portllm.storage.files import hash_file

DATASET = "dataset"
"""Where, in the directory of a task's data, the data lie that scoring needs."""

_TASK = re.compile(r"^task:[ \t]*[\"']?([^\s\"'#\[{]+)", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Keeps `!function module.name` as the string it is."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def folders(include: str | None, library: Path | None) -> list[Path]:
    """Where to look for a task: the study's own folder first, then lm-eval's."""
    return [Path(folder) for folder in (include, library) if folder is not None]


def library() -> Path | None:
    """The folder of lm-eval's own tasks; None where lm-eval is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    return spec and Path(spec.submodule_search_locations[0], "tasks")


def _yamls(folder: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(folder):
        below.sort()
        yield from (Path(directory, file) for file in sorted(files) if file.endswith(".yaml"))


def _task_of(path: Path) -> str | None:
    match = _TASK.search(path.read_text(errors="replace"))
    return match[1] if match else None


def _likely_first(name: str, folder: Path) -> list[Path]:
    # lm-eval has 14,000 files, and reading them all takes seconds; nearly every task lies in a
    # folder or a file that is called after it.
    start = name.partition("_")[0]
    return sorted(
        _yamls(folder),
        key=lambda path: (name not in str(path), start not in str(path)),
    )


def find(name: str, where: Iterable[Path]) -> Path | None:
    """A file below the first of the folders that defines the task `name`; None for no such task."""
    found = (path for folder in where for path in _likely_first(name, folder))
    return next((path for path in found if _task_of(path) == name), None)


def locate(name: str, include: str | None) -> Path:
    """The file that defines a task, in the study's own folder or in lm-eval's.

    Raises InputError, with the nearest name, for an unknown task.
    """
    where = folders(include, library())
    path = find(name, where)
    if path is None:
        raise InputError(f"lm-eval knows no task {name!r}; {nearest(name, names(where))}")
    return path


def definition_hashes(name: str, include: str | None) -> dict[str, str]:
    """Content hashes of the files that define a task, by their names."""
    return {path.name: hash_file(path) for path in defining_files(locate(name, include))}


def names(where: Iterable[Path]) -> list[str]:
    """Names of all tasks below the folders."""
    found = (_task_of(path) for folder in where for path in _yamls(folder))
    return sorted({task for task in found if task})


def _includes(path: Path, content: dict[str, Any]) -> list[Path]:
    included = content.get("include") or []
    return [path.parent / part for part in ([included] if isinstance(included, str) else included)]


def _read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader=_Loader)


def load(path: Path) -> dict[str, Any]:
    """A task's definition with what it includes; its own keys win. Functions stay names."""
    content = _read(path)
    merged: dict[str, Any] = {}
    for included in _includes(path, content):
        merged.update(load(included))
    merged.update(content)
    return merged


def _function_modules(path: Path) -> Iterator[Path]:
    for reference in re.findall(r"!function\s+([\w.]+)", path.read_text()):
        module = path.parent / (reference.rpartition(".")[0].replace(".", "/") + ".py")
        if module.is_file():
            yield module


def defining_files(path: Path) -> list[Path]:
    """Every file that defines a task: its YAML, what that includes, the modules they name."""
    found = [path, *_function_modules(path)]
    for included in _includes(path, _read(path)):
        found += defining_files(included)
    return list(dict.fromkeys(found))
