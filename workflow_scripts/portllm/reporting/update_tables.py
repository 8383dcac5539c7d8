"""Tables of scores over updates: the scores themselves, and their trends."""

import math
from pathlib import Path
from typing import Any

import pandas

from portllm.comparison import update_series as updates
from portllm.reporting.formatting import (
    ExhibitSettings,
    Table,
    column_names,
    level_text,
    p_text,
    value_text,
)
from portllm.scoring import metrics


def temporal(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Scores over updates: rows are the arms of each task, columns the updates."""
    numbers = updates.numbers(sources[0], settings)
    names = column_names(numbers)
    pairs = zip(numbers["task"], numbers["metric"], strict=True)
    columns = zip(numbers["value"], numbers["stderr"], numbers["metric"], strict=True)
    shown = numbers.assign(
        task=[names[pair] for pair in pairs], text=[value_text(*row) for row in columns]
    )
    keys = ["model", "task", "arm", "n"]
    wide = shown.pivot(index=keys, columns="update", values="text")
    order = list(dict.fromkeys(shown[keys].itertuples(index=False, name=None)))
    wide = wide.loc[order].fillna("–").rename(columns=lambda number: f"update {number}")
    text = wide.reset_index()
    text.columns.name = None
    return Table(numbers, text.drop(columns="model") if text["model"].nunique() == 1 else text)


def trend(sources: list[Path], settings: ExhibitSettings) -> Table:
    """How scores change from update to update: a slope for each arm of each task, and a forecast.

    Slopes are in points per update where the metric is a share.
    """
    share, level = settings["lifetime"]["share_of_gain"], settings["statistics"]["level"]
    over = updates.numbers(sources[0], settings)
    numbers = updates.trends(over, share, level)
    names = column_names(numbers)
    rows = numbers.to_dict("records")
    text = pandas.DataFrame(
        {
            "model": numbers["model"],
            "task": [names[row["task"], row["metric"]] for row in rows],
            "arm": numbers["arm"],
            "n": numbers["n"],
            "updates": numbers["updates"],
            "slope": [_slope_text(row, "") for row in rows],
            "p": [p_text(row["p"]) for row in rows],
            "p (Holm)": [p_text(row["p_holm"]) for row in rows],
            "slope, un-patched": [_slope_text(row, "un_patched_") for row in rows],
            "slope of the gain": [_slope_text(row, "gain_") for row in rows],
            f"below {share:.0%} of its gain": [_forecast_text(row) for row in rows],
        }
    )
    single = text["model"].nunique() == 1
    notes = _trend_notes(numbers, level)
    return Table(numbers, text.drop(columns="model") if single else text, notes)


def _slope_text(row: dict[str, Any], prefix: str) -> str:
    factor = metrics.factor(row["metric"])
    slope, low, high = (row[f"{prefix}{name}"] * factor for name in ("slope", "low", "high"))
    if pandas.isna(slope):
        return "–"
    # A minus as people write it, in text that stands beside plus signs.
    ends = "–" if pandas.isna(low) else f"{low:+.3f}, {high:+.3f}".replace("-", "−")
    return f"{slope:+.3f}".replace("-", "−") + f" [{ends}]"


# A line through scores says nothing of updates so many times farther than those it was drawn from.
HORIZON = 10


def _forecast_text(row: dict[str, Any]) -> str:
    if pandas.isna(row["forecast"]):
        return "–"
    low, high, last = row["forecast_low"], row["forecast_high"], row["last_update"]
    earliest = f"not before update {min(low, HORIZON * last):.0f}" if low > last else ""
    if not row["falling"]:
        # A line that may be level crosses nowhere; the data say at most where it does not yet.
        return "; ".join(filter(None, ["no decline shown", earliest if low < math.inf else ""]))
    if low > HORIZON * last:
        return earliest
    beyond = ", extrapolated" if row["extrapolated"] else ""
    return f"update {row['forecast']:.0f} [{low:.0f}, {high:.0f}]{beyond}"


def _trend_notes(numbers: pandas.DataFrame, level: float) -> tuple[str, ...]:
    stated = level_text(level)
    notes = [
        "Slopes are of straight lines through the scores (points per update for shares), with "
        f"{stated} intervals; p is two-sided, of no change; Holm's correction is over the slopes "
        f"of the same arm in this table. The last column forecasts, with a {stated} interval, the "
        "update at which the gain over the un-patched model falls below that share of the first "
        "gain; n is the number of items of each score."
    ]
    for column in ("refused", "forecast_refused"):
        what = "slope" if column == "refused" else "forecast"
        for reason, group in numbers[numbers[column].notna()].groupby(column, sort=False):
            rows = ", ".join(f"{row.task} {row.arm}" for row in group.itertuples())
            notes.append(f"No {what} for {rows}: {reason}.")
    uneven = numbers[~numbers["equal_seeds"].astype(bool)]
    if len(uneven):
        rows = ", ".join(f"{row.task} {row.arm}" for row in uneven.itertuples())
        notes.append(f"The number of seeds differs between the updates of {rows}.")
    return tuple(notes)
