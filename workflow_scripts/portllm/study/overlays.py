"""Recognise a config file that only changes another study but is used without it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.study.yaml_files import read_yaml

DEFINITIONS = ("models", "tasks", "imported")
"""Top-level keys of which every complete study has at least one."""
NAMED = ("models", "tasks", "evolutions", "arms")
"""Lists under `study`, whose entries are defined under a top-level key of the same name."""


def _is_complete(config: Any) -> bool:
    return isinstance(config, dict) and any(key in config for key in DEFINITIONS)


def _names(config: dict[str, Any]) -> list[tuple[str, str]]:
    """List the definitions that an overlay refers to: section and name."""
    return [
        (section, name)
        for part in (config.get("study"), config)
        if isinstance(part, dict)
        for section in NAMED
        if isinstance(part.get(section), dict | list)
        for name in part[section]
    ]


def find_base(config: dict[str, Any], candidates: Iterable[Path]) -> Path | None:
    """Find the study that defines most of what an overlay refers to; the first of equals."""
    studies = {path: read_yaml(path, what=str(path)) for path in candidates if path.is_file()}
    complete = {path: study for path, study in studies.items() if _is_complete(study)}
    names = _names(config)
    return max(
        complete,
        key=lambda path: sum(str(name) in (complete[path].get(key) or ()) for key, name in names),
        default=None,
    )


def _display(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def check_has_base(config: dict[str, Any], files: list[Path], project: Path) -> None:
    """Refuse overlays without a base study.

    Args:
        config: the merged configuration.
        files: the config files that it was merged from.
        project: the directory of config.yaml and config/, whose studies are suggested.

    Raises:
        InputError: no file defines a model or a task.
    """
    if not files or _is_complete(config):
        return
    base = find_base(config, [project / "config.yaml", *sorted(project.glob("config/*.yaml"))])
    names = " ".join(map(_display, files))
    verb = "define" if len(files) > 1 else "defines"
    example = f"--configfile {_display(base or Path('STUDY.yaml'))} {names}"
    raise InputError(
        f"{names}: {verb} no models or tasks, only changes to a study; name the study first: "
        f"{example}"
    )
