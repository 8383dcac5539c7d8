"""The tidy table of scores: one row per cell and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pandas

from portllm.errors import InputError
from portllm.storage.files import read_json

COLUMNS = [
    "model",
    "task",
    "applied_to",
    "trained_on",
    "method",
    "seed",
    "metric",
    "value",
    "stderr",
    "n",
]
NONE = "none"
# Columns that must be equal for scores of one task to be compared, with a phrase for messages.
COMPARED = {
    "n": "{} items",
    "task_version": "task version {}",
    "few_shot": "{} few-shot examples",
}
SOURCED_COLUMNS = [*COLUMNS, "task_version", "few_shot", "file"]


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert a scoring job's result file to rows of the table."""
    names = result["names"]
    return [
        {
            **names,
            "trained_on": cell["trained_on"],
            "method": cell["method"],
            "seed": NONE if cell["seed"] is None else cell["seed"],
            "metric": metric,
            **measured,
        }
        for cell in result["cells"]
        for metric, measured in cell["metrics"].items()
    ]


def read_result(path: Path) -> dict[str, Any]:
    """Read a scoring job's result file.

    Raises:
        InputError: the file lacks a key of a result file.
    """
    result = read_json(path)
    for key in ("names", "lm_eval", "cells"):
        if not isinstance(result, dict) or key not in result:
            raise InputError(f"{path}: not the result of a scoring job: no key {key!r}")
    return result


def _sourced(path: Path) -> list[dict[str, Any]]:
    result = read_result(path)
    more = {
        "task_version": result["lm_eval"]["version"],
        # lm_eval's is the task's own number, recorded where the study sets none.
        "few_shot": result["lm_eval"].get("few_shot", result.get("parameters", {}).get("few_shot")),
        "file": str(path),
    }
    return [{**row, **more} for row in rows(result)]


def check_finite(table: pandas.DataFrame, path: Path) -> None:
    """Raise InputError, naming the cell and the file, if a score is NaN, infinite or no number."""
    values = pandas.to_numeric(table["value"], errors="coerce")
    for index in table.index[~numpy.isfinite(values)]:
        row = table.loc[index]
        cell = "/".join(str(row[name]) for name in COLUMNS[: COLUMNS.index("value")])
        raise InputError(
            f"{path}: the score of {cell} is {row['value']}, expected a number; score it again"
        )


def check_comparable(table: pandas.DataFrame, place: str) -> None:
    """Check that scores of one task have the same number of items, task version and few-shot.

    Args:
        table: scores with `SOURCED_COLUMNS`; values that a file does not record are ignored.
        place: the start of the error message.

    Raises:
        InputError: two files differ.
    """
    for task, group in table.groupby("task", sort=False):
        for column, phrase in COMPARED.items():
            values = group[group[column].notna()].drop_duplicates(column)
            if len(values) > 1:
                first, second = values.iloc[0], values.iloc[1]
                raise InputError(
                    f"{place}: scores of {task} cannot be compared: "
                    f"{phrase.format(first[column])} in {first['file']}, {second[column]} in "
                    f"{second['file']}"
                )


def collect(results: Iterable[Path], imported: Iterable[Path] = ()) -> pandas.DataFrame:
    """Collect the scores of result files and of imported CSV files, in this order.

    Raises:
        InputError: a score is not finite, two files give the same score, or scores of a task
            cannot be compared.
    """
    rows_by_file = {path: _sourced(path) for path in results}
    own = [row for rows in rows_by_file.values() for row in rows]
    for path, rows in rows_by_file.items():
        check_finite(pandas.DataFrame(rows, columns=SOURCED_COLUMNS), path)
    parts = [pandas.DataFrame(own, columns=SOURCED_COLUMNS), *map(_read_text, imported)]
    # An empty part has no column types to concatenate.
    table = pandas.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    table["seed"] = table["seed"].astype(str)
    keys = COLUMNS[: COLUMNS.index("value")]
    repeated = table[table.duplicated(keys, keep=False)]
    if len(repeated):
        group = repeated.sort_values(keys, kind="stable")
        names = " ".join(str(group.iloc[0][key]) for key in keys)
        files = " and ".join(group["file"].iloc[:2])
        raise InputError(f"two files give the same score, {names}: {files}")
    check_comparable(table, "scores")
    return table[COLUMNS]


def read(path: Path) -> pandas.DataFrame:
    """Read the tidy table; names and seeds stay text."""
    return _read_text(path)


def _read_text(path: Path) -> pandas.DataFrame:
    text = dict.fromkeys(COLUMNS[:7], str)
    missing = {name: [""] for name in ("stderr", "task_version", "few_shot")}
    table = pandas.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)
    check_finite(table, path)
    return table


def selected(scores: pandas.DataFrame, settings: dict[str, Any]) -> pandas.DataFrame:
    """Select the scores of a table or figure by its models, tasks, versions and metrics."""
    kinds = {"models": "model", "tasks": "task", "versions": "applied_to", "metrics": "metric"}
    for key, column in kinds.items():
        if settings.get(key):
            scores = scores[scores[column].isin(settings[key])]
    return scores


def of_arms(scores: pandas.DataFrame, arms: dict[str, dict[str, Any]]) -> pandas.DataFrame:
    """Add the arm of each score; a cell that belongs to two arms appears twice.

    Args:
        scores: the tidy table.
        arms: the study's arms, with `trained_on`, `applied_to` and `method`.

    Returns:
        Scores grouped by arm, in the order of `arms`; each group keeps the order of `scores`.
    """
    parts = []
    for arm, definition in arms.items():
        trained_on = definition["trained_on"]
        if trained_on == NONE:
            in_arm = scores["trained_on"] == NONE
        elif trained_on == "same":
            in_arm = scores["trained_on"] == scores["applied_to"]
        else:
            in_arm = scores["trained_on"] == trained_on
        if trained_on != NONE:
            in_arm &= scores["method"] == definition["method"]
        in_arm &= _applies(scores["applied_to"], definition["applied_to"])
        parts.append(scores[in_arm].assign(arm=arm))
    return pandas.concat(parts, ignore_index=True)


def _applies(versions: pandas.Series, selector: str | list[str]) -> pandas.Series:
    if selector == "all":
        return pandas.Series(True, index=versions.index)
    if selector == "later":
        return versions != "base"
    return versions.isin([selector] if isinstance(selector, str) else selector)


def over_seeds(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Average values and standard errors over seeds.

    Standard errors are averaged too: seeds share their items, so the mean has the same item noise
    as a single seed.
    """
    keys = ["model", "task", "applied_to", "arm", "metric"]
    grouped = scores.groupby(keys, sort=False, as_index=False)
    return grouped.agg(
        value=("value", "mean"),
        stderr=("stderr", "mean"),
        n=("n", "first"),
        seeds=("seed", "count"),
    )


def of_chosen_arms(path: Path, settings: dict[str, Any]) -> pandas.DataFrame:
    """Read the scores that a table or figure selects, with their arms, averaged over seeds."""
    return over_seeds(of_arms(selected(read(path), settings), settings["arms"]))


def item_counts(scores: pandas.DataFrame) -> dict[tuple[str, str], int]:
    """Return the number of items of each task and metric.

    Raises:
        InputError: two cells have different numbers of items.
    """
    counts = {}
    for pair, rows in scores.groupby(["task", "metric"]):
        if rows["n"].nunique() > 1:
            first, other = rows.drop_duplicates("n").iloc[:2].to_dict("records")
            raise InputError(
                f"{other['model']}/{other['applied_to']}/{pair[0]}, {other['arm']}: found "
                f"{other['n']} items, expected the {first['n']} of {first['model']}/"
                f"{first['applied_to']}/{pair[0]}, {first['arm']}"
            )
        counts[pair] = int(rows["n"].iloc[0])
    return counts
