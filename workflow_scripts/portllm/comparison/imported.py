"""Import scores from external result files of lm-eval.

Files that cannot be read, or do not belong to the study, are left out and listed with the reason.
If several files belong to one cell, the newest is used.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas

from portllm.comparison import score_table
from portllm.errors import InputError, shown
from portllm.scoring import metrics
from portllm.storage.files import read_json
from portllm.study import imported_patterns
from portllm.study.imported_patterns import NAMES, CellPattern, SourceSettings, UnusableError

# Conditions that may change a score; a note reports them if they differ within a task.
CONDITIONS = {
    "batch_size": "batch size",
    "dtype": "precision",
    "lm_eval": "lm-eval",
    "transformers": "transformers",
}
FILE_COLUMNS = ["file", "status", "reason", *NAMES, "date", *score_table.COMPARED, *CONDITIONS]
USED, SUPERSEDED, LEFT_OUT = "used", "superseded", "left out"


@dataclass(frozen=True)
class ParsedResult:
    """The scores of one task in one file, and their provenance: the row in the list of files."""

    provenance: dict[str, Any]
    scores: list[dict[str, Any]]

    @property
    def cell(self) -> tuple[str, ...]:
        """The names of the cell that the scores belong to."""
        return tuple(self.provenance[name] for name in NAMES)


@dataclass(frozen=True)
class Imported:
    """The scores of a source, and the status of each of its files."""

    scores: pandas.DataFrame
    files: pandas.DataFrame


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file of lm-eval.

    Raises:
        UnusableError: the file is not valid JSON, or not a result file.
    """
    try:
        document = read_json(path)
    except InputError as error:
        raise UnusableError(str(error).removeprefix(f"{path}: ")) from None
    for part in ("results", "versions", "config"):
        if not (isinstance(document, dict) and isinstance(document.get(part), dict)):
            raise UnusableError(f"not a result file of lm-eval: no key {part!r}")
    return document


def _tasks(document: dict[str, Any], names: dict[str, str], settings: SourceSettings) -> list[str]:
    """List the tasks to read from a file: the cell's own, else those that the source lists."""
    present = list(document["results"])
    listed = ", ".join(present) or "none"
    if "task" in names:
        if names["task"] not in present:
            raise UnusableError(f"found task {listed}, expected {names['task']}")
        return [names["task"]]
    requested = [task for task in present if task in settings["tasks"]]
    if not requested:
        raise UnusableError(f"task {listed} is not part of the study")
    return requested


def _date(document: dict[str, Any], path: Path) -> str:
    """Return when the scores were measured, in ISO format, which sorts; "" if unknown.

    lm-eval records the time in the document (seconds since 1970) and in the file's name.
    """
    recorded = document.get("date")
    if isinstance(recorded, int | float):
        with suppress(ValueError, OverflowError, OSError):  # no time that a date can express
            return datetime.fromtimestamp(recorded, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    named = re.search(r"(\d{4}-\d\d-\d\dT)(\d\d)-(\d\d)-(\d\d(\.\d+)?)", path.name)
    return f"{named[1]}{named[2]}:{named[3]}:{named[4]}" if named else ""


def _plain(value: Any) -> Any:
    """Return a value that can be compared and grouped."""
    return value if isinstance(value, str | int | float | None) else shown(value)


def _of_task(document: dict[str, Any], part: str, task: str) -> Any:
    by_task = document.get(part)
    return by_task.get(task) if isinstance(by_task, dict) else None


def _measured(document: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    counts = _of_task(document, "n-samples", task)
    count = counts.get("effective") if isinstance(counts, dict) else None
    if not isinstance(count, int):
        raise UnusableError(f"no number of items of {task} ('n-samples')")
    try:
        measured = metrics.parse(document["results"][task], count)
    except (TypeError, ValueError, AttributeError):
        measured = {"": {"value": math.nan}}
    if not measured:
        raise UnusableError(f"no scores of {task}")
    if not all(math.isfinite(values["value"]) for values in measured.values()):
        raise UnusableError(f"found a score of {task} that is not a number")
    return measured


def read_file(path: Path, rules: list[CellPattern], settings: SourceSettings) -> list[ParsedResult]:
    """Read the scores of a file, one entry per task.

    Raises:
        UnusableError: the file has no usable scores.
    """
    document = read_result(path)
    config = document["config"]
    relative = path.relative_to(settings["directory"]).as_posix()
    cell = imported_patterns.name_cell(rules, relative, config.get("model_args"), settings)
    parsed = []
    for task in _tasks(document, cell, settings):
        names = {**cell, "task": task, "file": relative}
        measured = _measured(document, task)
        compared = {
            "n": next(iter(measured.values()))["n"],
            "task_version": _plain(_of_task(document, "versions", task)),
            "few_shot": _plain(_of_task(document, "n-shot", task)),
        }
        conditions = {
            "batch_size": _plain(config.get("batch_size")),
            "dtype": str(config.get("model_dtype") or "").removeprefix("torch."),
            "lm_eval": _plain(document.get("lm_eval_version")),
            "transformers": _plain(document.get("transformers_version")),
        }
        provenance = {**names, "date": _date(document, path), **compared, **conditions}
        rows = [
            {**names, **compared, "metric": metric, **values} for metric, values in measured.items()
        ]
        parsed.append(ParsedResult(provenance, rows))
    return parsed


def _read_all(settings: SourceSettings) -> tuple[list[ParsedResult], list[dict[str, Any]]]:
    """Read the files of a source; also return a row for every file that is left out."""
    rules = imported_patterns.rules(settings)
    directory = Path(settings["directory"])
    excluded = {path for part in settings.get("leave_out", ()) for path in directory.glob(part)}
    parsed, left_out = [], []
    for path in imported_patterns.find_files(settings):
        try:
            if path in excluded:
                raise UnusableError("listed in leave_out")
            parsed += read_file(path, rules, settings)
        except UnusableError as error:
            relative = path.relative_to(directory).as_posix()
            left_out.append({"file": relative, "status": LEFT_OUT, "reason": str(error)})
    return parsed, left_out


def collect(settings: SourceSettings, name: str) -> Imported:
    """Read the files of a source.

    Args:
        settings: an entry of the study's `imported`, plus `seed`, the default seed of patches.
        name: the source's name in the study, for messages.

    Returns:
        The scores, with the columns `score_table.SOURCED_COLUMNS`, and a row per file and task.

    Raises:
        InputError: no file can be used, or scores of one task cannot be compared.
    """
    parsed, rows = _read_all(settings)

    def age(entry: ParsedResult) -> tuple[str, str]:
        return entry.provenance["date"], entry.provenance["file"]

    newest: dict[tuple[str, ...], ParsedResult] = {}
    for entry in sorted(parsed, key=age):
        newest[entry.cell] = entry
    if not newest:
        example = f"{rows[0]['file']}: {rows[0]['reason']}"
        raise InputError(f"{name}: none of {len(rows)} files can be used, e.g. {example}")
    for entry in parsed:
        is_newest = newest[entry.cell] is entry
        reason = "" if is_newest else f"older than {newest[entry.cell].provenance['file']}"
        status = USED if is_newest else SUPERSEDED
        rows.append({**entry.provenance, "status": status, "reason": reason})

    def position(entry: ParsedResult) -> tuple[int, int, int]:
        cell = entry.provenance
        return (
            settings["models"].index(cell["model"]),
            settings["tasks"].index(cell["task"]),
            settings["versions"][cell["applied_to"]],
        )

    measured = [row for entry in sorted(newest.values(), key=position) for row in entry.scores]
    table = pandas.DataFrame(measured, columns=score_table.SOURCED_COLUMNS)
    score_table.check_comparable(table, name)
    files = pandas.DataFrame(rows, columns=FILE_COLUMNS, dtype=object).sort_values("file")
    return Imported(table, files)


# The number of file names to list; further ones are counted.
LISTED_FILES = 5


def _listed(names: Iterable[str]) -> str:
    files = list(names)
    more = f" and {len(files) - LISTED_FILES} more" if len(files) > LISTED_FILES else ""
    return ", ".join(files[:LISTED_FILES]) + more


def notes(files: pandas.DataFrame, name: str, origin: str | None = None) -> Iterator[str]:
    """Yield notes for below a table: how many files of a source are used, which are not and why.

    Args:
        files: the list of files from `collect`.
        name: the source's name in the study.
        origin: where the files come from.
    """
    counts = files.drop_duplicates("file")["status"].value_counts()
    source = f" ({origin})" if origin else ""
    yield (
        f"Of {files['file'].nunique()} result files of {name}{source}, {counts.get(USED, 0)} are "
        f"used, {counts.get(SUPERSEDED, 0)} superseded by newer ones and "
        f"{counts.get(LEFT_OUT, 0)} left out."
    )
    for status, word in ((LEFT_OUT, "Left out"), (SUPERSEDED, "Superseded")):
        for reason, group in files[files["status"] == status].groupby("reason", sort=False):
            yield f"{word}: {_listed(group['file'])} ({reason})."
    used = files[files["status"] == USED].fillna("")
    for column, condition in CONDITIONS.items():
        by_task = used.groupby("task", sort=False)[column].unique()
        differing = {task: values for task, values in by_task.items() if len(values) > 1}
        if differing:
            values = sorted(
                {str(value) or "not recorded" for v in differing.values() for value in v}
            )
            yield f"Conditions differ: {condition} {' or '.join(values)} in {', '.join(differing)}."
