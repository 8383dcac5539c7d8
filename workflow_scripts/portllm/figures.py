"""The figures. To add a kind, write its function and register it under its name."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from portllm import measured_figures, paired_tables, scores, temporal
from portllm.figure_style import COLOURS, HATCHES, LINES, MARKERS, NORMAL_95, Drawing, Settings
from portllm.table_text import column_names


def _bars(
    table: pandas.DataFrame,
    settings: Settings,
    unit: str,
    intervals: tuple[pandas.DataFrame, pandas.DataFrame],
) -> Figure:
    """Grouped bars: a group for each row, a bar for each column; missing values say so.

    `intervals` are lower and upper ends, shaped like the table; a bar may have none.
    """
    figure = Figure(figsize=(settings["width"], settings["height"]), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(table.columns)
    for number, column in enumerate(table.columns):
        places = [row + (number + 0.5) * width - 0.4 for row in range(len(table))]
        axes.bar(
            places,
            table[column].fillna(0),
            width * 0.92,
            label=column,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
        )
        lows, highs = (ends[column].fillna(table[column]) for ends in intervals)
        axes.errorbar(
            places,
            table[column],
            yerr=[table[column] - lows, highs - table[column]],
            fmt="none",
            ecolor="black",
            elinewidth=1.1,
            capsize=2,
        )
        for place, value, high in zip(places, table[column], highs, strict=True):
            text = "n/a" if pandas.isna(value) else f"{value:.0f}"
            height = 0 if pandas.isna(value) else max(value, high, 0)
            axes.annotate(
                text,
                (place, height),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
            )
    axes.set_xticks(range(len(table)), table.index)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    columns = _legend_columns(list(table.columns), settings["width"])
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _legend_columns(labels: list[str], width: float) -> int:
    # About twelve letters of a legend fit an inch beside its marks.
    letters = width * 12 / max(len(label) + 6 for label in labels)
    return max(1, min(len(labels), int(letters)))


def _version_label(models: pandas.Series) -> Callable[[pandas.Series], str]:
    single = models.nunique() == 1
    return lambda row: row["applied_to"] if single else f"{row['model']}\n{row['applied_to']}"


def recovery(sources: list[Path], settings: Settings) -> Drawing:
    """Share of re-fine-tuning's gain that the port recovers, with intervals, per version and task.

    `sources` are the table of scores and the result files of scoring jobs.
    """
    numbers = paired_tables.recovery_numbers(sources, settings)
    names = column_names(numbers)
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
    figure = _bars(percent("recovery"), settings, "recovered gain (%)", intervals)
    figure.axes[0].axhline(100, color="0.3", linewidth=0.8, linestyle="--")
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
            yerr=NORMAL_95 * line["stderr"].fillna(0) * factor,
            label=arm,
            color=COLOURS[style % len(COLOURS)],
            marker=MARKERS[style % len(MARKERS)],
            linestyle=LINES[style % len(LINES)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xticks(updates)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _measure(metric: str) -> str:
    name = metric.partition(",")[0]
    words = {"acc": "accuracy", "acc_norm": "normalised accuracy"}.get(name, name.replace("_", " "))
    return words if scores.factor(metric) == 1 else f"{words} (%)"


def lifetime(sources: list[Path], settings: Settings) -> Drawing:
    """Scores over updates: a panel for each task, a line for each arm, with 95 % intervals."""
    numbers = temporal.numbers(sources[0], settings)
    names = column_names(numbers)
    several = numbers["model"].nunique() > 1
    panels = list(numbers.groupby(["model", "task", "metric"], sort=False))
    # Panels narrower than two inches cannot hold their labels.
    columns = max(1, min(len(panels), int(settings["width"] // 2.2)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(settings["width"], settings["height"] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    arms = list(settings["arms"])
    for axes, ((model, task, metric), part) in zip(grid, panels, strict=False):
        _lines(axes, part, arms, scores.factor(metric))
        title = names[task, metric]
        axes.set_title(f"{model}\n{title}" if several else title, fontsize=9)
        axes.set_ylabel(_measure(metric), fontsize=9)
        axes.set_xlabel("number of updates", fontsize=9)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = {}
    for axes in figure.axes:
        marks, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, marks, strict=True))
    shown = [arm for arm in arms if arm in handles]
    figure.legend(
        [handles[arm] for arm in shown],
        shown,
        loc="outside lower center",
        ncols=_legend_columns(shown, settings["width"]),
        frameon=False,
        fontsize=8,
        title="bars: 95 % intervals over the items",
        title_fontsize=8,
    )
    return Drawing(figure, numbers)


KINDS: dict[str, Callable[[list[Path], Settings], Drawing]] = {
    "recovery": recovery,
    "lifetime": lifetime,
    "geometry": measured_figures.geometry,
    "loss_slices": measured_figures.loss_slices,
    "scaling": measured_figures.scaling,
}
