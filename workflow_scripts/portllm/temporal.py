"""Scores over updates: how long a patch lasts.

The number of an update is a version's depth in the chain that it stands in, 0 for the base.
"""

from pathlib import Path
from typing import Any

import pandas

from portllm import scores
from portllm.errors import InputError

Settings = dict[str, Any]

SERIES = ["model", "task", "metric", "arm"]


def numbers(source: Path, settings: Settings) -> pandas.DataFrame:
    """Scores of every arm at every update, mean over seeds: one row for each arm and version.

    Rows follow models, tasks, metrics and arms in the order of the scores and of the study, then
    the updates. Versions of no known update are left out; InputError where nothing remains.
    `settings` are those of a table or figure: its selection, `arms`, and `updates`, the number of
    each model's versions.
    """
    table = scores.selected(scores.read(source), settings)
    found = scores.over_seeds(scores.of_arms(table, settings["arms"]))
    known = settings["updates"]
    pairs = zip(found["model"], found["applied_to"], strict=True)
    found["update"] = [known.get(model, {}).get(version) for model, version in pairs]
    found = found.dropna(subset="update").astype({"update": int})
    if found.empty:
        measured = ", ".join(dict.fromkeys(table["metric"])) or "none of the selection"
        raise InputError(f"{source}: no score of the selection is of a known update ({measured})")
    found["un_patched"] = [
        settings["arms"][arm]["trained_on"] == scores.NONE for arm in found["arm"]
    ]
    # A stable sort by what comes first in the scores keeps their order.
    ranks = {
        **{column: _ranks(table[column]) for column in ("model", "task", "metric")},
        "arm": {arm: place for place, arm in enumerate(settings["arms"])},
    }

    def rank(column: pandas.Series) -> pandas.Series:
        return column.map(ranks[column.name]) if column.name in ranks else column

    return found.sort_values([*SERIES, "update"], key=rank, kind="stable", ignore_index=True)


def _ranks(column: pandas.Series) -> dict[str, int]:
    return {value: place for place, value in enumerate(dict.fromkeys(column))}
