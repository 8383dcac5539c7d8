"""Analyse scores over updates: how long a patch lasts.

The number of an update is a version's depth in its chain, 0 for the base.
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
    """Return the score of every arm at every update, averaged over seeds.

    Args:
        source: the table of scores.
        settings: those of a table or figure: its selection, `arms`, and `updates`, the number of
            each version by model.

    Returns:
        One row per arm and version, sorted by model, task and metric (in the order of the scores),
        arm (in the order of the study) and update. Versions without a number are left out.

    Raises:
        InputError: no score remains.
    """
    table = score_table.selected(score_table.read(source), settings)
    scores = score_table.over_seeds(score_table.of_arms(table, settings["arms"]))
    known = settings["updates"]
    pairs = zip(scores["model"], scores["applied_to"], strict=True)
    scores["update"] = [known.get(model, {}).get(version) for model, version in pairs]
    scores = scores.dropna(subset="update").astype({"update": int})
    if scores.empty:
        measured = ", ".join(dict.fromkeys(table["metric"])) or "none of the selection"
        raise InputError(f"{source}: no score of the selection belongs to an update ({measured})")
    scores["un_patched"] = [
        settings["arms"][arm]["trained_on"] == score_table.NONE for arm in scores["arm"]
    ]
    # Ranks by first appearance, with a stable sort, keep the order of the scores.
    ranks = {
        **{column: _ranks(table[column]) for column in ("model", "task", "metric")},
        "arm": {arm: place for place, arm in enumerate(settings["arms"])},
    }

    def rank(column: pandas.Series) -> pandas.Series:
        return column.map(ranks[column.name]) if column.name in ranks else column

    return scores.sort_values([*SERIES, "update"], key=rank, kind="stable", ignore_index=True)


def _ranks(column: pandas.Series) -> dict[str, int]:
    return {value: place for place, value in enumerate(dict.fromkeys(column))}


def _line(part: pandas.DataFrame, prefix: str, level: float) -> dict[str, Any]:
    """Return slope, interval and p of one arm's line; with too few updates, only the reason."""
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
    """Return an arm's gain over the un-patched model at each update that both have."""
    both = part.merge(un_patched, on="update", suffixes=("", "_un_patched"))
    return both.assign(value=both["value"] - both["value_un_patched"])[["update", "value"]]


def _forecast(gains: pandas.DataFrame, share: float, level: float) -> dict[str, Any]:
    """Forecast the update at which an arm keeps less than a share of its first gain."""
    if gains.empty:
        return {"forecast_refused": "no score of the un-patched model to gain on"}
    first = float(gains["value"].iloc[0])
    known = {"first_gain": first, "least_gain": share * first}
    if first <= 0:
        return {**known, "forecast_refused": "no gain at the first update"}
    try:
        forecast = statistics.forecast(
            gains["update"].to_numpy(), gains["value"].to_numpy(), share * first, level
        )
    except InputError as error:
        return {**known, "forecast_refused": str(error)}
    return {
        **known,
        "forecast": forecast.update,
        "forecast_low": forecast.low,
        "forecast_high": forecast.high,
        "falling": forecast.falling,
        "extrapolated": forecast.extrapolated,
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
    """Fit a line through each arm's scores and forecast how long its patch lasts.

    Args:
        over_updates: the scores that `numbers` returns. Seeds are averaged before, because they
            share items and would count them several times.
        share: the share of the first gain below which a patch counts as worn out.
        level: confidence level of all intervals.

    Returns:
        One row per arm. Slopes are in the metric's unit per update. `p_holm` is corrected over the
        slopes of an arm on all models, tasks and metrics (`family` is their number). `gain_slope`
        is the slope of the gain over the un-patched model, `forecast` the update at which less
        than `share` of the first gain is left. Missing values have a reason in `refused` or
        `forecast_refused`. `n` is the number of items.
    """
    table = pandas.DataFrame(_arm_trends(over_updates, share, level)).reindex(columns=TREND_COLUMNS)
    for _, arm in table[table["p"].notna()].groupby("arm"):
        table.loc[arm.index, "p_holm"] = statistics.holm(arm["p"].tolist())
        table.loc[arm.index, "family"] = len(arm)
    return table
