"""The jobs of a study and which of them are cached, as Snakemake's own summary lists them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError


@dataclass(frozen=True)
class PlannedRule:
    """A rule of the workflow.

    `outputs` are the path patterns of its outputs. `name_in_run` is its name in Snakemake's output
    if that differs, as in a workflow that imports this one as a module.
    """

    name: str
    outputs: tuple[str, ...]
    gpu: bool = False
    temporary: bool = False
    name_in_run: str = ""

    @classmethod
    def from_json(cls, rule: dict[str, Any]) -> "PlannedRule":
        """The rule that the workflow has described as JSON."""
        return cls(**{**rule, "outputs": tuple(rule["outputs"])})


REASONS = {
    "params changed": "settings or code changed",
    "rule implementation changed": "the rule's command changed",
    "set of input files changed": "it has other inputs",
    "updated input files": "an input is newer",
}
"""Snakemake's states of an output that is there and outdated, in words."""


@dataclass(frozen=True)
class PlannedJob:
    """A job of the study. It is cached if Snakemake would not run it.

    `reason` says why a job whose outputs are there runs again, as far as it is the job's own.
    """

    rule: str
    wildcards: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    cached: bool
    reason: str = ""


def _matcher(pattern: str) -> re.Pattern[str]:
    # A wildcard that occurs twice has the same value in both places, as in Snakemake.
    parts = re.split(r"\{(\w+)[^}]*\}", pattern)
    seen: set[str] = set()
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += re.escape(part)
        else:
            text += f"(?P={part})" if part in seen else f"(?P<{part}>.+)"
            seen.add(part)
    return re.compile(text)


def read_summary(lines: Iterable[str], rules: Iterable[PlannedRule]) -> list[PlannedJob]:
    """Jobs of a study from the output of `snakemake --summary`, which has a line per output file.

    Raises InputError where the lines are not a summary.
    """
    rules = list(rules)
    names = {rule.name_in_run: rule.name for rule in rules if rule.name_in_run}
    matchers = {rule.name: [_matcher(pattern) for pattern in rule.outputs] for rule in rules}
    outputs: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    pending = set()
    reasons = {}
    rows = [line.rstrip("\n").split("\t") for line in lines]
    if not any(cells[0] == "output_file" for cells in rows):
        raise InputError(
            "Snakemake printed no summary of the study's jobs; see logs/plan.log for the reason"
        )
    for cells in rows:
        if len(cells) != 6 or cells[0] == "output_file":
            continue
        path, _, name_in_run, _, status, plan = cells
        rule = names.get(name_in_run, name_in_run)
        if rule not in matchers:
            # A rule of a workflow that imports this one.
            continue
        matches = (matcher.fullmatch(path) for matcher in matchers.get(rule, ()))
        match = next(filter(None, matches), None)
        key = (rule, tuple(match.groupdict().items()) if match else (("output", path),))
        outputs.setdefault(key, []).append(path)
        if plan == "update pending":
            pending.add(key)
            reasons[key] = REASONS.get(status, "")
    return [
        PlannedJob(*key, tuple(paths), key not in pending, reasons.get(key, ""))
        for key, paths in outputs.items()
    ]


def files_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a directory. Links hold no data and count as 0."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(files_bytes(entry) for entry in path.iterdir())
