"""Of which cell a result file speaks that someone else made: patterns, and what they find."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError, nearest
from portllm.study import matrix

SourceSettings = dict[str, Any]

NAMES = ("model", "applied_to", "trained_on", "method", "task", "seed")
WORDS = {"applied_to": "version", "trained_on": "patch's version"}
DIRECT = "direct"


class UnusableError(Exception):
    """Why a file is left out."""


@dataclass(frozen=True)
class CellPattern:
    """Patterns that a file matches, by what they are searched in, and the names that it then has.

    Names are those of a cell; more come from the groups of the patterns.
    """

    patterns: dict[str, re.Pattern[str]]
    names: dict[str, str]


def _compile(pattern: str, place: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{place}: {pattern!r} is no regular expression: {error}") from None
    for name in compiled.groupindex:
        if name not in NAMES:
            raise InputError(f"{place}: no cell has a {name!r}; {nearest(name, NAMES)}")
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
    given = [*names, *(name for pattern in patterns.values() for name in pattern.groupindex)]
    if len(settings["models"]) == 1 and "model" not in given:
        names["model"] = settings["models"][0]
        given.append("model")
    for name in NAMES:
        if given.count(name) > 1:
            raise InputError(f"{place}: {name!r} is given {given.count(name)} times")
    for name in ("model", "applied_to", "trained_on"):
        if name not in given:
            raise InputError(
                f"{place}: nothing gives {name!r}; expected it as a key, or as a group of a "
                f"pattern, (?P<{name}>…)"
            )
    known = _known(settings)
    for name in names.keys() & known.keys():
        if names[name] not in known[name]:
            expected = nearest(names[name], known[name])
            what = WORDS.get(name, name)
            raise InputError(f"{place}.{name}: no {what} named {names[name]!r}; {expected}")
    return CellPattern(patterns, names)


def rules(settings: SourceSettings) -> list[CellPattern]:
    """The rules of a source that name cells, checked.

    Raises InputError that begins with the key below the source: for what is no regular expression,
    a group of another name than those of a cell, a name that nothing or several things give, one
    that the source does not list, and two versions of one number.
    """
    by_number: dict[int, str] = {}
    for version, number in settings["versions"].items():
        other = by_number.setdefault(number, version)
        if other != version:
            raise InputError(f"versions: {other} and {version} are both update {number}")
    return [_rule(settings, number) for number in range(len(settings["cells"]))]


def find_files(settings: SourceSettings) -> list[Path]:
    """The files of a source, sorted; InputError that begins with the key where there are none."""
    directory = Path(settings["directory"])
    if not directory.is_dir():
        origin = f"; get it from {settings['origin']}" if "origin" in settings else ""
        raise InputError(f"directory: no such directory: {directory}{origin}")
    wanted = {path for pattern in settings["files"] for path in directory.glob(pattern)}
    found = sorted(path for path in wanted if path.is_file())
    if not found:
        patterns = ", ".join(settings["files"])
        raise InputError(f"files: no file of {directory} matches {patterns}")
    return found


def arguments(model_args: Any) -> dict[str, str]:
    """lm-eval's `model_args`, which it writes as a mapping or, earlier, as `key=value,…`."""
    if isinstance(model_args, dict):
        return {str(name): str(value) for name, value in model_args.items()}
    pairs = (part.partition("=") for part in str(model_args or "").split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _captured(rules: list[CellPattern], subjects: dict[str, str]) -> dict[str, str]:
    for rule in rules:
        found = [pattern.search(subjects[name]) for name, pattern in rule.patterns.items()]
        groups = [match.groupdict() for match in found if match is not None]
        if len(groups) == len(found):
            captured = {name: value for group in groups for name, value in group.items() if value}
            return {**rule.names, **captured}
    raise UnusableError("no entry of `cells` matches")


def name_cell(
    rules: list[CellPattern], path: str, model_args: Any, settings: SourceSettings
) -> dict[str, str]:
    """The names of the cell that a file speaks of; without `task` where no pattern gives it.

    `path` is relative to the source's directory, `model_args` what lm-eval recorded. Raises
    UnusableError where no rule matches, or for a name that the source does not list.
    """
    given = arguments(model_args)
    subjects = {"path": path, **{name: given.get(name, "") for name in ("pretrained", "peft")}}
    names = _captured(rules, subjects)
    for name, renamed in settings["rename"].items():
        if name in names:
            names[name] = renamed.get(names[name], names[name])
    numbered = {str(number): version for version, number in settings["versions"].items()}
    for name in ("applied_to", "trained_on"):
        if name not in names:
            raise UnusableError(f"the entry of `cells` that matches gives no {name!r}")
        names[name] = numbered.get(names[name], names[name])
    for name, options in _known(settings).items():
        if name in names and names[name] not in options:
            what = WORDS.get(name, name)
            raise UnusableError(f"of the {what} {names[name]!r}, which the study does not read")
    if names["trained_on"] == matrix.SAME:
        names["trained_on"] = names["applied_to"]
    if names["trained_on"] == matrix.NONE:
        if given.get("peft"):
            raise UnusableError("taken for an un-patched version, but it records a patch")
        # A repetition has versions of its own, so that even what has no patch may have a seed.
        named = {"seed": matrix.NONE, **names, "method": matrix.NONE}
    else:
        named = {"method": DIRECT, "seed": str(settings["seed"]), **names}
    if not (named["seed"].isdecimal() or named["seed"] == matrix.NONE):
        raise UnusableError(f"{named['seed']!r} for a seed")
    return named
