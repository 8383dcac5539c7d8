"""The figures. To add a kind, write its function and register it under its name."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from portllm.comparison import update_series
from portllm.reporting import measurement_figures, paired_tables
from portllm.reporting.figure_style import (
    BESIDE,
    COLOURS,
    HATCHES,
    LINES,
    MARKERS,
    Drawing,
    Settings,
    inner_width,
    interval_ends,
    interval_note,
    legend,
    panels,
    set_title,
)
from portllm.reporting.formatting import column_names, level_text, with_intervals
from portllm.scoring import metrics

# What the labels of bars take, in points: a line of figures, a letter of them, and one of a group.
LINE, LETTER, GROUP_LETTER = 9.0, 4.6, 5.6
# The share of a group's width that its bars take.
FILLED = 0.8


def _groups_in_a_row(table: pandas.DataFrame, points: float) -> int:
    """How many groups of bars a row of so many points holds so that their labels stand apart."""
    longest = max(len(line) for label in table.index for line in label.splitlines())
    of_bars = points * FILLED / (LINE * len(table.columns))
    of_labels = points / (GROUP_LETTER * longest + LINE)
    fitting = max(1, min(len(table), int(min(of_bars, of_labels))))
    # Rows of equal length look better than a short last one.
    return math.ceil(len(table) / math.ceil(len(table) / fitting))


def _bars(
    table: pandas.DataFrame,
    settings: Settings,
    unit: str,
    intervals: tuple[pandas.DataFrame, pandas.DataFrame],
    note: str,
) -> Figure:
    """Grouped bars: a group for each row, a bar for each column; missing values say so.

    `intervals` are lower and upper ends, shaped like the table; a bar may have none. Groups that
    one row of the figure cannot hold go on in the next.
    """
    points = 72 * (settings["width"] - BESIDE)
    count = _groups_in_a_row(table, points)
    starts = range(0, len(table), count)
    figure, rows = panels(settings, len(starts), widest=1, same_scale=True)
    for axes, start in zip(rows, starts, strict=True):
        part = slice(start, start + count)
        ends = (intervals[0].iloc[part], intervals[1].iloc[part])
        _row_of_bars(axes, table.iloc[part], ends, points / count)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    legend(figure, settings["width"], title=note)
    return figure


def _row_of_bars(
    axes: Axes,
    table: pandas.DataFrame,
    intervals: tuple[pandas.DataFrame, pandas.DataFrame],
    group: float,
) -> None:
    """One row of grouped bars; `group` is the width of a group in points."""
    width = FILLED / len(table.columns)
    numbers = table.map(lambda value: "n/a" if pandas.isna(value) else f"{value:.0f}")
    upright = LETTER * numbers.map(len).to_numpy().max() + 2 > group * width
    for number, column in enumerate(table.columns):
        places = [row + (number + 0.5) * width - FILLED / 2 for row in range(len(table))]
        axes.bar(
            places,
            table[column].fillna(0),
            width * 0.92,
            label=column,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
        )
        values, (lows, highs) = table[column], (ends[column] for ends in intervals)
        axes.errorbar(
            places,
            values,
            # Without an interval there is no line, which would be one of no width.
            yerr=[(values - lows).clip(lower=0), (highs - values).clip(lower=0)],
            fmt="none",
            ecolor="black",
            elinewidth=1.1,
            capsize=2,
        )
        for place, text, high in zip(places, numbers[column], highs.fillna(values), strict=True):
            axes.annotate(
                text,
                (place, 0 if pandas.isna(high) else max(high, 0)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90 if upright else 0,
                # A line of the figure may pass behind it.
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=3,
            )
    axes.set_xticks(range(len(table)), table.index, fontsize=9)


def _version_label(models: pandas.Series) -> Callable[[pandas.Series], str]:
    single = models.nunique() == 1
    return lambda row: row["applied_to"] if single else f"{row['model']}\n{row['applied_to']}"


def recovery(sources: list[Path], settings: Settings) -> Drawing:
    """Share of re-fine-tuning's gain that the port recovers, with intervals, per version and task.

    `sources` are the table of scores and the result files of scoring jobs.
    """
    numbers = paired_tables.recovery_numbers(sources, settings)
    named = column_names(numbers)
    columns = (numbers[name] for name in ("task", "metric", "n"))
    names = {
        (task, metric): f"{named[task, metric]}, n = {n}"
        for task, metric, n in zip(*columns, strict=True)
    }
    label = _version_label(numbers["model"])
    numbers = numbers.assign(
        version=numbers.apply(label, axis=1),
        column=[names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)],
    )

    def percent(name: str) -> pandas.DataFrame:
        wide = numbers.pivot(index="version", columns="column", values=name) * 100
        return wide.loc[
            list(dict.fromkeys(numbers["version"])), list(dict.fromkeys(names.values()))
        ]

    intervals = percent("low"), percent("high")
    note = f"lines: {level_text(settings['statistics']['level'])} intervals; dashed: re-fine-tuning"
    figure = _bars(percent("recovery"), settings, "recovered gain (%)", intervals, note)
    for axes in figure.axes:
        axes.axhline(100, color="0.3", linewidth=0.8, linestyle="--")
    return Drawing(figure, numbers.drop(columns=["version", "column"]))


def _lines(axes: Axes, part: pandas.DataFrame, arms: list[str], factor: float) -> None:
    """Lines of one panel; arms stand a little beside each other so that no bar hides another."""
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
    # Numbers of a long chain would lie on each other.
    letters = sum(len(f"{update} ") for update in updates)
    axes.set_xticks(updates[:: math.ceil(letters * LETTER * 8 / 7 / (72 * inner_width(axes)))])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _measure(metric: str) -> str:
    name = metric.partition(",")[0]
    words = {"acc": "accuracy", "acc_norm": "normalised accuracy"}.get(name, name.replace("_", " "))
    return words if metrics.factor(metric) == 1 else f"{words} (%)"


def lifetime(sources: list[Path], settings: Settings) -> Drawing:
    """Scores over updates: a panel for each task, a line for each arm, with intervals."""
    level = settings["statistics"]["level"]
    numbers = with_intervals(update_series.numbers(sources[0], settings), level)
    names = column_names(numbers)
    several = numbers["model"].nunique() > 1
    parts = list(numbers.groupby(["model", "task", "metric"], sort=False))
    figure, grid = panels(settings, len(parts))
    arms = list(settings["arms"])
    for axes, ((model, task, metric), part) in zip(grid, parts, strict=True):
        _lines(axes, part, arms, metrics.factor(metric))
        title = [*([model] if several else []), names[task, metric]]
        set_title(axes, *title, f"n = {part['n'].iloc[0]}")
        axes.set_ylabel(_measure(metric), fontsize=9)
        axes.set_xlabel("number of updates", fontsize=9)
    legend(figure, settings["width"], order=arms, title=interval_note(level))
    return Drawing(figure, numbers)


KINDS: dict[str, Callable[[list[Path], Settings], Drawing]] = {
    "recovery": recovery,
    "lifetime": lifetime,
    "geometry": measurement_figures.geometry,
    "loss_slices": measurement_figures.loss_slices,
    "scaling": measurement_figures.scaling,
}
