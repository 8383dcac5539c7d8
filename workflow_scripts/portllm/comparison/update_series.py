"""Scores over updates: how long a patch lasts.

The number of an update is a version's depth in the chain that it stands in, 0 for the base.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas

from portllm import statistics
from portllm.comparison import score_table
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
    table = score_table.selected(score_table.read(source), settings)
    found = score_table.over_seeds(score_table.of_arms(table, settings["arms"]))
    known = settings["updates"]
    pairs = zip(found["model"], found["applied_to"], strict=True)
    found["update"] = [known.get(model, {}).get(version) for model, version in pairs]
    found = found.dropna(subset="update").astype({"update": int})
    if found.empty:
        measured = ", ".join(dict.fromkeys(table["metric"])) or "none of the selection"
        raise InputError(f"{source}: no score of the selection is of a known update ({measured})")
    found["un_patched"] = [
        settings["arms"][arm]["trained_on"] == score_table.NONE for arm in found["arm"]
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


def _line(part: pandas.DataFrame, prefix: str, level: float) -> dict[str, Any]:
    """Slope, interval and p of one arm's line; missing, with the reason, where it has too few."""
    try:
        line = statistics.trend(part["update"].to_numpy(), part["value"].to_numpy(), level)
    except InputError as error:
        return {f"{prefix}refused": str(error)}
    return {
        f"{prefix}slope": line.slope,
        f"{prefix}low": line.low,
        f"{prefix}high": line.high,
        f"{prefix}p": line.p_value,
    }


def _gains(part: pandas.DataFrame, un_patched: pandas.DataFrame) -> pandas.DataFrame:
    """An arm's gain over the un-patched model at each update that both were scored at."""
    both = part.merge(un_patched, on="update", suffixes=("", "_un_patched"))
    return both.assign(value=both["value"] - both["value_un_patched"])[["update", "value"]]


def _forecast(gains: pandas.DataFrame, share: float, level: float) -> dict[str, Any]:
    """The update from which on an arm keeps less than a share of its first gain."""
    if gains.empty:
        return {"forecast_refused": "no score of the un-patched model to gain on"}
    first = float(gains["value"].iloc[0])
    known = {"first_gain": first, "least_gain": share * first}
    if first <= 0:
        return {**known, "forecast_refused": "no gain at the first update"}
    try:
        found = statistics.forecast(
            gains["update"].to_numpy(), gains["value"].to_numpy(), share * first, level
        )
    except InputError as error:
        return {**known, "forecast_refused": str(error)}
    return {
        **known,
        "forecast": found.update,
        "forecast_low": found.low,
        "forecast_high": found.high,
        "falling": found.falling,
        "extrapolated": found.extrapolated,
    }


def _arm_trends(
    over_updates: pandas.DataFrame, share: float, level: float
) -> Iterator[dict[str, Any]]:
    columns = ["model", "task", "metric"]
    for names, group in over_updates.groupby(columns, sort=False):
        bare = group[group["un_patched"]]
        bare = bare[bare["arm"] == bare["arm"].iloc[0]] if len(bare) else bare
        for arm, part in group.groupby("arm", sort=False):
            row: dict[str, Any] = {
                **dict(zip(columns, names, strict=True)),
                "arm": arm,
                "n": int(part["n"].iloc[0]),
                "updates": len(part),
                "last_update": int(part["update"].max()),
                "equal_seeds": part["seeds"].nunique() == 1,
                **_line(part, "", level),
                "level": level,
            }
            if not part["un_patched"].any():
                gains = _gains(part, bare)
                row |= _line(bare, "un_patched_", level) | _line(gains, "gain_", level)
                row |= _forecast(gains, share, level)
            yield row


TREND_COLUMNS = [
    *SERIES,
    "n",
    "updates",
    "last_update",
    "equal_seeds",
    *("slope", "low", "high", "p", "p_holm", "family", "refused"),
    *("un_patched_slope", "un_patched_low", "un_patched_high", "un_patched_p"),
    *("gain_slope", "gain_low", "gain_high", "gain_p"),
    *("first_gain", "least_gain", "forecast", "forecast_low", "forecast_high"),
    *("falling", "extrapolated", "forecast_refused"),
    "level",
]


def trends(over_updates: pandas.DataFrame, share: float, level: float) -> pandas.DataFrame:
    """A line through each arm's scores, and when its patch is worn out: one row for each arm.

    `over_updates` is what `numbers` gives, `level` that of all intervals; `n` is the number of the
    task's items. Slopes are in the metric's unit per update; seeds are
    averaged first, since what they share would count several times. `p_holm` is corrected over the
    family of an arm: its slopes on all models, tasks and metrics of the table (`family` is their
    number). `gain_slope` is that of the gain over the un-patched model, and `forecast` the update
    from which on less than `share` of the first gain is left. What cannot be said is missing, with
    its reason in `refused` or `forecast_refused`.
    """
    found = pandas.DataFrame(_arm_trends(over_updates, share, level)).reindex(columns=TREND_COLUMNS)
    for _, arm in found[found["p"].notna()].groupby("arm"):
        found.loc[arm.index, "p_holm"] = statistics.holm(arm["p"].tolist())
        found.loc[arm.index, "family"] = len(arm)
    return found
