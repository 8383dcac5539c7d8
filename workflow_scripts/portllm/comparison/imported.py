"""Results made elsewhere: lm-eval's result files that someone else made, read as scores.

What cannot be read, or is not of the study, is left out and named; of several files that speak of
one cell, the newest counts.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas

from portllm.comparison import score_table
from portllm.errors import InputError
from portllm.scoring import metrics
from portllm.study import imported_patterns
from portllm.study.imported_patterns import NAMES, CellPattern, SourceSettings, UnusableError

# What moves a score and need not be equal; it is told where it differs within a task.
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
    """What one file says of one task: its row in the list of files, and its scores."""

    about: dict[str, Any]
    scores: list[dict[str, Any]]

    @property
    def cell(self) -> tuple[str, ...]:
        """The names of the cell that it speaks of."""
        return tuple(self.about[name] for name in NAMES)


@dataclass(frozen=True)
class Imported:
    """The scores of a source, what became of each of its files, and what readers must know."""

    scores: pandas.DataFrame
    files: pandas.DataFrame


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file of lm-eval; UnusableError where it is none or is cut off."""
    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnusableError(f"invalid JSON: {error}") from None
    for part in ("results", "versions", "config"):
        if not (isinstance(document, dict) and isinstance(document.get(part), dict)):
            raise UnusableError(f"no result file of lm-eval: it has no {part!r}")
    return document


def _tasks(document: dict[str, Any], names: dict[str, str], settings: SourceSettings) -> list[str]:
    """The tasks of a file that are read: the cell's, else all that the source lists."""
    there = list(document["results"])
    listed = ", ".join(there) or "no task"
    if "task" in names:
        if names["task"] not in there:
            raise UnusableError(f"of another task: {listed} instead of {names['task']}")
        return [names["task"]]
    wanted = [task for task in there if task in settings["tasks"]]
    if not wanted:
        raise UnusableError(f"of another task: {listed}, which the study does not read")
    return wanted


def _date(document: dict[str, Any], path: Path) -> str:
    """When a file's scores were made, in a form that sorts; empty where nothing says it.

    lm-eval records the time (seconds since 1970) and writes it into the file's name.
    """
    recorded = document.get("date")
    if isinstance(recorded, int | float):
        return datetime.fromtimestamp(recorded, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    named = re.search(r"(\d{4}-\d\d-\d\dT)(\d\d)-(\d\d)-(\d\d(\.\d+)?)", path.name)
    return f"{named[1]}{named[2]}:{named[3]}:{named[4]}" if named else ""


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
        raise UnusableError(f"something other than numbers for scores of {task}")
    return measured


def read_file(path: Path, rules: list[CellPattern], settings: SourceSettings) -> list[ParsedResult]:
    """What a file says, one entry for each task that is read; UnusableError where nothing is."""
    document = read_result(path)
    config = document["config"]
    relative = path.relative_to(settings["directory"]).as_posix()
    cell = imported_patterns.name_cell(rules, relative, config.get("model_args"), settings)
    found = []
    for task in _tasks(document, cell, settings):
        names = {**cell, "task": task, "file": relative}
        measured = _measured(document, task)
        compared = {
            "n": next(iter(measured.values()))["n"],
            "task_version": _of_task(document, "versions", task),
            "few_shot": _of_task(document, "n-shot", task),
        }
        conditions = {
            "batch_size": config.get("batch_size"),
            "dtype": str(config.get("model_dtype") or "").removeprefix("torch."),
            "lm_eval": document.get("lm_eval_version"),
            "transformers": document.get("transformers_version"),
        }
        about = {**names, "date": _date(document, path), **compared, **conditions}
        rows = [
            {**names, **compared, "metric": metric, **values} for metric, values in measured.items()
        ]
        found.append(ParsedResult(about, rows))
    return found


def _read_all(settings: SourceSettings) -> tuple[list[ParsedResult], list[dict[str, Any]]]:
    """What the files of a source say, and rows of the files that say nothing."""
    rules = imported_patterns.rules(settings)
    directory = Path(settings["directory"])
    refused = {path for part in settings.get("leave_out", ()) for path in directory.glob(part)}
    found, others = [], []
    for path in imported_patterns.find_files(settings):
        try:
            if path in refused:
                raise UnusableError("as the study says")
            found += read_file(path, rules, settings)
        except UnusableError as error:
            relative = path.relative_to(directory).as_posix()
            others.append({"file": relative, "status": LEFT_OUT, "reason": str(error)})
    return found, others


def collect(settings: SourceSettings, name: str) -> Imported:
    """Read a source's files.

    `settings` are those of a source in a study, and `seed`, the seed of patches whose file says
    none. The scores have the columns of the tidy table, then those that must be equal in a
    comparison, and the file. Raises InputError, with the source's name, where no file can be used
    or scores of one model and task cannot be compared.
    """
    found, rows = _read_all(settings)
    newest: dict[tuple[str, ...], ParsedResult] = {}
    for entry in sorted(found, key=lambda entry: (entry.about["date"], entry.about["file"])):
        newest[entry.cell] = entry
    if not newest:
        example = f"{rows[0]['file']}: {rows[0]['reason']}"
        raise InputError(f"{name}: none of {len(rows)} files can be used; {example}")
    for entry in found:
        is_newest = newest[entry.cell] is entry
        reason = "" if is_newest else f"older than {newest[entry.cell].about['file']}"
        status = USED if is_newest else SUPERSEDED
        rows.append({**entry.about, "status": status, "reason": reason})

    def place(entry: ParsedResult) -> tuple[int, ...]:
        about = entry.about
        of_model, of_task = (settings[kind].index(about[kind[:-1]]) for kind in ("models", "tasks"))
        return of_model, of_task, settings["versions"][about["applied_to"]]

    measured = [row for entry in sorted(newest.values(), key=place) for row in entry.scores]
    table = pandas.DataFrame(measured, columns=score_table.SOURCED_COLUMNS)
    score_table.check_comparable(table, name)
    files = pandas.DataFrame(rows, columns=FILE_COLUMNS, dtype=object).sort_values("file")
    return Imported(table, files)


# More file names than these are counted, not listed.
MOST_NAMED = 5


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return ", ".join(known[:MOST_NAMED]) + more


def notes(files: pandas.DataFrame, name: str, origin: str | None = None) -> Iterator[str]:
    """Sentences for under a table: how many files of a source count, which do not and why."""
    counts = files.drop_duplicates("file")["status"].value_counts()
    whose = f" ({origin})" if origin else ""
    yield (
        f"Of {files['file'].nunique()} result files of {name}{whose}, {counts.get(USED, 0)} are "
        f"used, {counts.get(SUPERSEDED, 0)} superseded by newer ones and "
        f"{counts.get(LEFT_OUT, 0)} left out."
    )
    for status, word in ((LEFT_OUT, "Left out"), (SUPERSEDED, "Superseded")):
        for reason, group in files[files["status"] == status].groupby("reason", sort=False):
            yield f"{word}: {_listed(group['file'])} ({reason})."
    used = files[files["status"] == USED].fillna("")
    for column, what in CONDITIONS.items():
        by_task = used.groupby("task", sort=False)[column].unique()
        differing = {task: values for task, values in by_task.items() if len(values) > 1}
        if differing:
            found = sorted(
                {str(value) or "not recorded" for v in differing.values() for value in v}
            )
            yield f"Conditions differ: {what} {' or '.join(found)} in {', '.join(differing)}."
