"""Table of how scores change from update to update, and of when a patch is worn out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study.exhibits import Settings, UpdateExhibit, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    import pandas

    from portllm.reporting.formatting import Table

HORIZON = 10
"""A forecast is not stated beyond this multiple of the last update: a line says nothing so far."""


@register
class TrendTable(UpdateExhibit):
    """A slope for each arm of each task, and a forecast. Slopes of shares are in points."""

    group = "tables"
    kind = "trend"
    summary = "change of each arm's score with each update, and when a patch is worn out"
    section = "updates"
    caption = """
        Change of the score with each update, with its {level} interval and p-value, corrected over
        the slopes of the same arm, and the update at which the patch is expected to be worn out."""
    order = 30
    statistics = ("level",)

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return when a patch counts as worn out, too."""
        return {**super().study_settings(config, settings), "lifetime": config["lifetime"]}

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are the scores."""
        import pandas

        from portllm.comparison import update_series
        from portllm.reporting.formatting import Table, column_names, p_text

        share, level = settings["lifetime"]["share_of_gain"], settings["statistics"]["level"]
        numbers = update_series.trends(update_series.numbers(sources[0], settings), share, level)
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
        notes = _notes(numbers, level)
        return Table(numbers, text.drop(columns="model") if single else text, notes)

    def headline(self, numbers: pandas.DataFrame) -> str | None:
        """Return in how many series of each arm scores fall."""
        # Arms with a patch have the un-patched model's trend in their row.
        patched = numbers[numbers["un_patched_slope"].notna()]
        if patched.empty:
            return None
        # Of intervals and tests alike; rounded, as 1 − 0.95 is a little more than 0.05.
        significant = round(1 - patched["level"].iloc[0], 6)
        parts = []
        for arm, rows in patched.groupby("arm", sort=False):
            falling = int(((rows["slope"] < 0) & (rows["p_holm"] < significant)).sum())
            parts.append(f"{arm} in {falling} of {len(rows)}")
        return (
            f"Over {int(patched['last_update'].max())} updates, scores fall (Holm-corrected "
            f"p < {significant:g}): {', '.join(parts)} series."
        )


def _slope_text(row: dict[str, Any], prefix: str) -> str:
    import pandas

    from portllm.scoring import metrics

    factor = metrics.factor(row["metric"])
    slope, low, high = (row[f"{prefix}{name}"] * factor for name in ("slope", "low", "high"))
    if pandas.isna(slope):
        return "–"
    # A real minus sign, to match the width of plus signs.
    ends = "–" if pandas.isna(low) else f"{low:+.3f}, {high:+.3f}".replace("-", "−")
    return f"{slope:+.3f}".replace("-", "−") + f" [{ends}]"


def _forecast_text(row: dict[str, Any]) -> str:
    import pandas

    if pandas.isna(row["forecast"]):
        return "–"
    low, high, last = row["forecast_low"], row["forecast_high"], row["last_update"]
    earliest = f"not before update {min(low, HORIZON * last):.0f}" if low > last else ""
    if not row["falling"]:
        # A line that may be level has no crossing; the data give at most an earliest update.
        return "; ".join(filter(None, ["no decline shown", earliest if low < math.inf else ""]))
    if low > HORIZON * last:
        return earliest
    beyond = ", extrapolated" if row["extrapolated"] else ""
    return f"update {row['forecast']:.0f} [{low:.0f}, {high:.0f}]{beyond}"


def _notes(numbers: pandas.DataFrame, level: float) -> tuple[str, ...]:
    from portllm.reporting.formatting import level_text

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
