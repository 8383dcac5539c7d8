"""The tidy table of scores: one row per cell and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

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


def collect(results: Iterable[Path]) -> pandas.DataFrame:
    """The scores of several result files, in their order."""
    found = [row for path in results for row in rows(read_json(path))]
    return pandas.DataFrame(found, columns=COLUMNS)


def read(path: Path) -> pandas.DataFrame:
    """Read the tidy table; names stay text."""
    text = dict.fromkeys(COLUMNS[:7], str)
    return pandas.read_csv(path, dtype=text, keep_default_na=False, na_values={"stderr": [""]})


def selected(scores: pandas.DataFrame, settings: dict[str, Any]) -> pandas.DataFrame:
    """The scores that a table or figure selects by models, tasks, versions and metrics."""
    kinds = {"models": "model", "tasks": "task", "versions": "applied_to", "metrics": "metric"}
    for key, column in kinds.items():
        if settings.get(key):
            scores = scores[scores[column].isin(settings[key])]
    return scores


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
