"""The tidy table of scores: one row per cell and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.errors import InputError
from portllm.files import read_json

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
# Metrics that are the share of items that are right, and all that are shown in per cent.
PROPORTIONS = ("acc", "acc_norm", "exact_match")
PER_CENT = (*PROPORTIONS, "f1", "mcc")


def factor(metric: str) -> float:
    """By what a score is multiplied to be shown: 100 for a share."""
    return 100.0 if metric.partition(",")[0] in PER_CENT else 1.0


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one scoring job's result file."""
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
    """Read a scoring job's result file; InputError, naming the key, where it is another file."""
    result = read_json(path)
    for key in ("names", "lm_eval", "cells"):
        if not isinstance(result, dict) or key not in result:
            raise InputError(f"{path}: not the result of a scoring job: it has no {key!r}")
    return result


def collect(results: Iterable[Path]) -> pandas.DataFrame:
    """The scores of several result files, in their order.

    Raises InputError for results of one task that were scored on other numbers of items or in
    other versions of the task.
    """
    found = {path: read_result(path) for path in results}
    check_comparable(found)
    return pandas.DataFrame(
        [row for result in found.values() for row in rows(result)], columns=COLUMNS
    )


def check_comparable(results: dict[Path, dict[str, Any]]) -> None:
    """Refuse scores of one task that lie in no common table: other items, other task versions."""
    first: dict[str, tuple[Path, str, set[int]]] = {}
    for path, result in results.items():
        task = result["names"]["task"]
        version = str(result["lm_eval"]["version"])
        counts = {score["n"] for cell in result["cells"] for score in cell["metrics"].values()}
        place, expected, count = first.setdefault(task, (path, version, counts))
        again = "score both again (--forcerun score)"
        if version != expected:
            raise InputError(
                f"{path}: found version {version} of the task {task}, expected that of {place}, "
                f"which is {expected}; {again}"
            )
        if len(counts | count) > 1:
            found, wanted = (", ".join(map(str, sorted(some))) for some in (counts, count))
            raise InputError(
                f"{path}: found {found} items of the task {task}, expected those of {place}, which "
                f"are {wanted}; {again}"
            )


def read(path: Path) -> pandas.DataFrame:
    """Read the tidy table; names stay text."""
    text = dict.fromkeys(COLUMNS[:7], str)
    return pandas.read_csv(path, dtype=text, keep_default_na=False, na_values={"stderr": [""]})


def selected(table: pandas.DataFrame, settings: dict[str, Any]) -> pandas.DataFrame:
    """The rows of a table's or figure's models, tasks and versions."""
    for column, key in (("model", "models"), ("task", "tasks"), ("applied_to", "versions")):
        if settings.get(key):
            table = table[table[column].isin(settings[key])]
    return table


def of_arms(scores: pandas.DataFrame, arms: dict[str, dict[str, Any]]) -> pandas.DataFrame:
    """The scores with the arm that each belongs to; a cell of two arms appears twice.

    `arms` are as in a study: which patches (`trained_on`), with which method. Versions keep the
    order of the scores, arms their own.
    """
    parts = []
    for arm, definition in arms.items():
        trained_on = definition["trained_on"]
        if trained_on == NONE:
            chosen = scores["trained_on"] == NONE
        elif trained_on == "same":
            chosen = scores["trained_on"] == scores["applied_to"]
        else:
            chosen = scores["trained_on"] == trained_on
        if trained_on != NONE:
            chosen &= scores["method"] == definition["method"]
        chosen &= _applies(scores["applied_to"], definition["applied_to"])
        parts.append(scores[chosen].assign(arm=arm))
    return pandas.concat(parts, ignore_index=True)


def _applies(versions: pandas.Series, selector: str | list[str]) -> pandas.Series:
    if selector == "all":
        return pandas.Series(True, index=versions.index)
    if selector == "later":
        return versions != "base"
    return versions.isin([selector] if isinstance(selector, str) else selector)


def over_seeds(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Mean over seeds of value and standard error, with the number of seeds.

    The seeds share their items, so that the mean's item noise is no smaller than one seed's.
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
    """Scores of a table's or figure's arms, models, tasks and versions, as means over seeds."""
    return over_seeds(of_arms(selected(read(path), settings), settings["arms"]))


def item_counts(scores: pandas.DataFrame) -> dict[tuple[str, str], int]:
    """How many items each task and metric has; InputError where cells have different numbers."""
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
