"""The figures. To add a kind, write its function and register it under its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure

from portllm import paired_tables
from portllm.table_text import column_names

# Equal scores give equal files.
matplotlib.rcParams["svg.hashsalt"] = "portllm"

Settings = dict[str, Any]

# Okabe & Ito (2008): told apart by colour-blind readers; the hatches do so without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")


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
    # About twelve letters of a legend fit an inch beside its marks.
    letters = settings["width"] * 12 / max(len(column) + 6 for column in table.columns)
    columns = max(1, min(len(table.columns), int(letters)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _version_label(models: pandas.Series) -> Callable[[pandas.Series], str]:
    single = models.nunique() == 1
    return lambda row: row["applied_to"] if single else f"{row['model']}\n{row['applied_to']}"


def recovery(sources: list[Path], settings: Settings) -> Figure:
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
    return figure


KINDS: dict[str, Callable[[list[Path], Settings], Figure]] = {
    "recovery": recovery,
}
