"""Find and read the YAML files of lm-eval tasks without importing lm-eval.

Importing lm-eval takes seconds and indexing its tasks ten more. Whether a task exists and which
files define it can be read from the files alone.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from portllm.errors import InputError, nearest, shown
from portllm.storage import yaml_text
from portllm.storage.files import hash_file, read_text

DATASET = "dataset"
"""Subfolder of a task's data directory that holds the dataset for scoring."""

GROUP_SHOWN = 60
"""Tasks of a group that an error message names."""

MOST_INCLUDES = 20
"""Files that a task file may include, one through the other, when its tags are searched."""

_TASK = re.compile(r"^([\"']?)task\1[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)", re.MULTILINE)
_GROUP = re.compile(r"^[\"']?group[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)", re.MULTILINE)
_TAG = re.compile(r"^[\"']?tag[\"']?[ \t]*:.*(?:\n(?:-|[ \t]).*)*", re.MULTILINE)
_INCLUDE = re.compile(r"^[\"']?include[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Keeps `!function module.name` as the string it is."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def folders(include: str | None, library: Path | None) -> list[Path]:
    """List the folders to search for a task: the study's own first, then lm-eval's."""
    return [Path(folder) for folder in (include, library) if folder is not None]


def library() -> Path | None:
    """Return the folder of lm-eval's own tasks; None if lm-eval is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    return spec and Path(spec.submodule_search_locations[0], "tasks")


def _yamls(folder: Path) -> Iterator[Path]:
    for directory, subfolders, files in os.walk(folder):
        subfolders.sort()
        yield from (Path(directory, file) for file in sorted(files) if file.endswith(".yaml"))


def _task_of(path: Path) -> str | None:
    try:
        match = _TASK.search(read_text(path))
    except InputError:  # lm-eval could not load it either
        return None
    return match[2] if match else None


def _likely_first(name: str, folder: Path) -> list[Path]:
    # lm-eval has 14,000 files, and reading them all takes seconds. Nearly every task has a folder
    # or file of the same name.
    start = name.partition("_")[0]
    return sorted(
        _yamls(folder),
        key=lambda path: (name not in str(path), start not in str(path)),
    )


def installed_tasks(environment: Path) -> Path | None:
    """Return the folder of lm-eval's own tasks in an environment; None if it is not installed."""
    return next(environment.glob("lib/python*/site-packages/lm_eval/tasks"), None)


def find(name: str, search_folders: Iterable[Path]) -> Path | None:
    """Return the file that defines the task `name` in the first folder that has it, or None."""
    candidates = (path for folder in search_folders for path in _likely_first(name, folder))
    return next((path for path in candidates if _task_of(path) == name), None)


def locate(name: str, include: str | None) -> Path:
    """Return the file that defines a task, from the study's own folder or lm-eval's.

    Raises:
        InputError: no such task; the message suggests the nearest name.
    """
    search_folders = folders(include, library())
    path = find(name, search_folders)
    if path is None:
        raise InputError(not_a_task(name, search_folders))
    return path


def not_a_task(name: str, search_folders: Iterable[Path]) -> str:
    """Return why no file defines the task `name`: it is a group of tasks, or unknown."""
    members = group_members(name, search_folders)
    if not members:
        return f"lm-eval has no task {name!r}; {nearest(name, names(search_folders))}"
    listed = ", ".join(members[:GROUP_SHOWN]) + (", …" if len(members) > GROUP_SHOWN else "")
    return (
        f"lm-eval's {name!r} is a group, expected a single task; list those of its {len(members)} "
        f"tasks that you need: {listed}"
    )


def group_members(name: str, search_folders: Iterable[Path]) -> list[str]:
    """List the tasks of an lm-eval group or tag, those of its subgroups included; [] if none."""
    groups, tagged = _groups_and_tags(search_folders)
    tasks: dict[str, None] = {}
    pending, expanded = [name], set()
    while pending:
        member = pending.pop(0)
        if member in expanded:
            continue
        expanded.add(member)
        if member in groups:
            pending += _member_names(_read(groups[member]).get("task"))
        elif member in tagged:
            pending += tagged[member]
        elif member != name:
            tasks[member] = None
    return list(tasks)


def _groups_and_tags(
    search_folders: Iterable[Path],
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Map each group to its file, and each tag to its tasks. Files are searched, not parsed."""
    groups: dict[str, Path] = {}
    tagged: dict[str, list[str]] = {}
    for path in (path for folder in search_folders for path in _yamls(folder)):
        try:
            text = read_text(path)
            if match := _GROUP.search(text):
                groups.setdefault(match[1], path)
            elif match := _TASK.search(text):
                for tag in _tags(_inherited_tag(path, text)):
                    tagged.setdefault(tag, []).append(match[2])
        except InputError:  # lm-eval could not load it either
            continue
    return groups, tagged


def _member_names(members: Any) -> list[str]:
    listed = members if isinstance(members, list) else [members]
    named = (
        member.get("task", member.get("group")) if isinstance(member, dict) else member
        for member in listed
    )
    return [name for name in named if isinstance(name, str)]


def _inherited_tag(path: Path, text: str, depth: int = 0) -> str:
    """Return the `tag:` lines of a task file, or of the file that it includes."""
    if match := _TAG.search(text):
        return match[0]
    included = _INCLUDE.search(text)
    if included is None or depth > MOST_INCLUDES:
        return ""
    path = path.parent / included[1]
    return _inherited_tag(path, read_text(path), depth + 1) if path.is_file() else ""


@cache
def _tags(lines: str) -> tuple[str, ...]:
    tags = (yaml_text.parse(lines, "tag", _Loader) or {}).get("tag") if lines else None
    return tuple(_member_names(tags))


def definition_hashes(name: str, include: str | None) -> dict[str, str]:
    """Map the name of each file that defines a task to its SHA-256."""
    return {path.name: hash_file(path) for path in defining_files(locate(name, include))}


def names(search_folders: Iterable[Path]) -> list[str]:
    """List the names of all tasks below the folders."""
    tasks = (_task_of(path) for folder in search_folders for path in _yamls(folder))
    return sorted({task for task in tasks if task})


def _includes(path: Path, content: dict[str, Any]) -> list[Path]:
    included = content.get("include") or []
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: include: found {shown(included)}, expected file names")
    return [path.parent / name for name in names]


def _read(path: Path) -> dict[str, Any]:
    content = yaml_text.parse(read_text(path), str(path), _Loader)
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {shown(content)}, expected a mapping of a task's keys")
    return content


def load(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task's definition with its includes; its own keys win. Functions stay names.

    Args:
        path: the task's YAML file.
        including: the files through whose `include` the file is read.

    Raises:
        InputError: a file cannot be read, is not a mapping, or includes itself.
    """
    if path.resolve() in including:
        raise InputError(f"{path}: include: found a file that includes this one")
    content = _read(path)
    merged: dict[str, Any] = {}
    for included in _includes(path, content):
        merged.update(load(included, (*including, path.resolve())))
    merged.update(content)
    return merged


def _function_modules(path: Path) -> Iterator[Path]:
    for reference in re.findall(r"!function\s+([\w.]+)", read_text(path)):
        module = path.parent / (reference.rpartition(".")[0].replace(".", "/") + ".py")
        if module.is_file():
            yield module


def defining_files(path: Path) -> list[Path]:
    """List every file that defines a task: its YAML, the included YAMLs, their Python modules."""
    files = [path, *_function_modules(path)]
    for included in _includes(path, _read(path)):
        files += defining_files(included)
    return list(dict.fromkeys(files))
