"""Map external result files to cells of the study, by patterns over paths and model arguments."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError, nearest
from portllm.study import matrix

SourceSettings = dict[str, Any]

NAMES = ("model", "applied_to", "trained_on", "method", "task", "seed")
LABELS = {"applied_to": "version", "trained_on": "patch of version"}
DIRECT = "direct"


class UnusableError(Exception):
    """A file cannot be used; the message is the reason."""


@dataclass(frozen=True)
class CellPattern:
    """An entry of `cells`: patterns that a file must match, and the names of its cell.

    `patterns` are keyed by the text that they are searched in: `path`, `pretrained` or `peft`.
    The groups of the patterns give further names.
    """

    patterns: dict[str, re.Pattern[str]]
    names: dict[str, str]


def _compile(pattern: str, place: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{place}: {pattern!r} is not a regular expression: {error}") from None
    for name in compiled.groupindex:
        if name not in NAMES:
            raise InputError(f"{place}: unknown group {name!r}; {nearest(name, NAMES)}")
    return compiled


def _known(settings: SourceSettings) -> dict[str, list[str]]:
    versions = list(settings["versions"])
    return {
        "model": settings["models"],
        "task": settings["tasks"],
        "applied_to": versions,
        "trained_on": [matrix.NONE, matrix.SAME, *versions],
    }


def _rule(settings: SourceSettings, number: int) -> CellPattern:
    place = f"cells.{number}"
    definition = settings["cells"][number]
    names = {name: str(definition[name]) for name in NAMES if name in definition}
    patterns = {
        subject: _compile(pattern, f"{place}.match.{subject}")
        for subject, pattern in definition["match"].items()
    }
    named = [*names, *(name for pattern in patterns.values() for name in pattern.groupindex)]
    if len(settings["models"]) == 1 and "model" not in named:
        names["model"] = settings["models"][0]
        named.append("model")
    for name in NAMES:
        if named.count(name) > 1:
            raise InputError(f"{place}: found {name!r} {named.count(name)} times, expected once")
    for name in ("model", "applied_to", "trained_on"):
        if name not in named:
            raise InputError(
                f"{place}: no {name!r}; expected it as a key, or as a group of a pattern, "
                f"(?P<{name}>…)"
            )
    known = _known(settings)
    for name in names.keys() & known.keys():
        if names[name] not in known[name]:
            kind = {"trained_on": "version", "applied_to": "version"}.get(name, name)
            raise InputError(
                f"{place}.{name}: found {names[name]!r}, expected a {kind}; "
                f"{nearest(names[name], known[name])}"
            )
    return CellPattern(patterns, names)


def rules(settings: SourceSettings) -> list[CellPattern]:
    """Compile and check the patterns of a source.

    Raises:
        InputError: a pattern is not a regular expression; a group is not one of `NAMES`; a name is
            missing, given more than once, or not listed by the source; two versions have the same
            number. The message starts with the key below the source.
    """
    by_number: dict[int, str] = {}
    for version, number in settings["versions"].items():
        other = by_number.setdefault(number, version)
        if other != version:
            raise InputError(f"versions: {other} and {version} are both update {number}")
    return [_rule(settings, number) for number in range(len(settings["cells"]))]


def find_files(settings: SourceSettings) -> list[Path]:
    """List the files of a source, sorted.

    Raises:
        InputError: the directory does not exist or no file matches; starts with the key.
    """
    directory = Path(settings["directory"])
    if not directory.is_dir():
        origin = f"; get it from {settings['origin']}" if "origin" in settings else ""
        raise InputError(f"directory: no such directory: {directory}{origin}")
    matches = {path for pattern in settings["files"] for path in directory.glob(pattern)}
    files = sorted(path for path in matches if path.is_file())
    if not files:
        patterns = ", ".join(settings["files"])
        raise InputError(f"files: no file of {directory} matches {patterns}")
    return files


def arguments(model_args: Any) -> dict[str, str]:
    """Parse lm-eval's `model_args`, a mapping or, in older releases, `key=value,…`."""
    if isinstance(model_args, dict):
        return {str(name): str(value) for name, value in model_args.items()}
    pairs = (part.partition("=") for part in str(model_args or "").split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _captured(rules: list[CellPattern], subjects: dict[str, str]) -> dict[str, str]:
    for rule in rules:
        matches = [pattern.search(subjects[name]) for name, pattern in rule.patterns.items()]
        groups = [match.groupdict() for match in matches if match is not None]
        if len(groups) == len(matches):
            captured = {name: value for group in groups for name, value in group.items() if value}
            return {**rule.names, **captured}
    raise UnusableError("no entry of `cells` matches")


def name_cell(
    rules: list[CellPattern], path: str, model_args: Any, settings: SourceSettings
) -> dict[str, str]:
    """Return the names of the cell that a file belongs to.

    Args:
        rules: the patterns of the source; the first that matches is used.
        path: the file, relative to the source's directory.
        model_args: as lm-eval recorded them.
        settings: the source.

    Returns:
        Values of `NAMES`; without `task` if no pattern gives it.

    Raises:
        UnusableError: no pattern matches, or the source does not list a name.
    """
    model_arguments = arguments(model_args)
    subjects = {
        "path": path,
        **{name: model_arguments.get(name, "") for name in ("pretrained", "peft")},
    }
    names = _captured(rules, subjects)
    for name, renamed in settings["rename"].items():
        if name in names:
            names[name] = renamed.get(names[name], names[name])
    numbered = {str(number): version for version, number in settings["versions"].items()}
    for name in ("applied_to", "trained_on"):
        if name not in names:
            raise UnusableError(f"the matching entry of `cells` gives no {name!r}")
        names[name] = numbered.get(names[name], names[name])
    for name, options in _known(settings).items():
        if name in names and names[name] not in options:
            label = LABELS.get(name, name)
            raise UnusableError(f"{label} {names[name]} is not part of the study")
    if names["trained_on"] == matrix.SAME:
        names["trained_on"] = names["applied_to"]
    if names["trained_on"] == matrix.NONE:
        if model_arguments.get("peft"):
            raise UnusableError("matched as an un-patched version, but it records an adapter")
        # Repetitions evolve the versions again, so un-patched versions may have a seed too.
        named = {"seed": matrix.NONE, **names, "method": matrix.NONE}
    else:
        named = {"method": DIRECT, "seed": str(settings["seed"]), **names}
    if not (named["seed"].isdecimal() or named["seed"] == matrix.NONE):
        raise UnusableError(f"found seed {named['seed']!r}, expected a number")
    return named
