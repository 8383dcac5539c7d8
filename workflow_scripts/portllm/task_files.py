"""The YAML files of lm-eval's tasks, read without lm-eval.

Importing lm-eval takes seconds and indexing its tasks ten more; a workflow that only wants to know
whether a task exists, and which files define it, reads the files.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

_TASK = re.compile(r"^task:[ \t]*[\"']?([^\s\"'#\[{]+)", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Keeps `!function module.name` as the string it is."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def folders(include: str | None, library: Path | None) -> list[Path]:
    """Where to look for a task: the study's own folder first, then lm-eval's."""
    return [Path(folder) for folder in (include, library) if folder is not None]


def _task_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for directory, below, files in os.walk(folder):
        below.sort()
        for file in sorted(files):
            if file.endswith(".yaml"):
                path = Path(directory, file)
                match = _TASK.search(path.read_text(errors="replace"))
                if match:
                    yield match[1], path


def find(name: str, where: Iterable[Path]) -> Path | None:
    """The first file below the folders that defines the task `name`; None where there is none."""
    return next(
        (path for folder in where for task, path in _task_files(folder) if task == name), None
    )


def names(where: Iterable[Path]) -> list[str]:
    """Names of all tasks below the folders."""
    return sorted({task for folder in where for task, _ in _task_files(folder)})


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
