"""Scores over the updates of a model, as a table and as a figure."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study.exhibits import Settings, UpdateExhibit, register

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from portllm.reporting.figure_style import Drawing
    from portllm.reporting.formatting import Table


@register
class TemporalTable(UpdateExhibit):
    """An arm of a task in each row, an update in each column."""

    group = "tables"
    kind = "temporal"
    summary = "scores of each arm at each update"
    section = "updates"
    caption = """
        Scores at each update with their standard errors, in per cent for metrics that are
        shares."""
    order = 10

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are the scores."""
        from portllm.comparison import update_series
        from portllm.reporting.formatting import Table, column_names, value_text

        numbers = update_series.numbers(sources[0], settings)
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


@register
class LifetimeFigure(UpdateExhibit):
    """A panel for each task, a line for each arm, with intervals."""

    group = "figures"
    kind = "lifetime"
    summary = "scores of each arm at each update"
    section = "updates"
    caption = """
        Scores at each update of the model, a line for each arm. Bars are {level} intervals over the
        n items (Wilson's for shares of correct items, else normal). The arms share their items, so
        the difference between two lines is less noisy than their bars suggest."""
    order = 10
    statistics = ("level",)

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are the scores."""
        from portllm.comparison import update_series
        from portllm.reporting.figure_style import Drawing, interval_note, legend, panels, set_title
        from portllm.reporting.formatting import column_names, with_intervals
        from portllm.scoring import metrics

        level = settings["statistics"]["level"]
        numbers = with_intervals(update_series.numbers(sources[0], settings), level)
        names = column_names(numbers)
        several = numbers["model"].nunique() > 1
        parts = list(numbers.groupby(["model", "task", "metric"], sort=False))
        figure, grid = panels(settings, len(parts))
        arms = list(settings["arms"])
        for axes, ((model, task, metric), part) in zip(grid, parts, strict=True):
            _draw_lines(axes, part, arms, metrics.factor(metric))
            title = [*([model] if several else []), names[task, metric]]
            set_title(axes, *title, f"n = {part['n'].iloc[0]}")
            axes.set_ylabel(_measure(metric), fontsize=9)
            axes.set_xlabel("number of updates", fontsize=9)
        legend(figure, settings["width"], order=arms, title=interval_note(level))
        return Drawing(figure, numbers)


def _draw_lines(axes: Axes, part: pandas.DataFrame, arms: list[str], factor: float) -> None:
    """Draw the lines of one panel; arms are shifted slightly so that no bar hides another."""
    from portllm.reporting.figure_style import (
        COLOURS,
        LINES,
        MARKERS,
        TICK_LETTER,
        inner_width,
        interval_ends,
    )

    updates = sorted(set(part["update"]))
    steps = [later - earlier for earlier, later in pairwise(updates)]
    apart = 0.1 * min(steps, default=1)
    for arm, line in part.groupby("arm", sort=False):
        style = arms.index(arm)
        axes.errorbar(
            line["update"] + apart * (style - (len(arms) - 1) / 2),
            line["value"] * factor,
            yerr=interval_ends(line, factor),
            label=arm,
            color=COLOURS[style % len(COLOURS)],
            marker=MARKERS[style % len(MARKERS)],
            linestyle=LINES[style % len(LINES)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
        )
    # All numbers of a long chain would overlap.
    letters = sum(len(f"{update} ") for update in updates)
    axes.set_xticks(updates[:: math.ceil(letters * TICK_LETTER / (72 * inner_width(axes)))])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _measure(metric: str) -> str:
    from portllm.scoring import metrics

    name = metric.partition(",")[0]
    words = {"acc": "accuracy", "acc_norm": "normalised accuracy"}.get(name, name.replace("_", " "))
    return words if metrics.factor(metric) == 1 else f"{words} (%)"
