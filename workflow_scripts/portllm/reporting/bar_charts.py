"""Draw grouped bars with intervals, in as many rows as their labels need."""

import math

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from portllm.reporting.figure_style import (
    AXIS_LABEL_WIDTH,
    COLOURS,
    HATCHES,
    Settings,
    legend,
    panels,
)

# Sizes of labels in points: a line, a letter of a bar's label, a letter of a group's label.
LINE, LETTER, GROUP_LETTER = 9.0, 4.6, 5.6
# The share of a group's width that its bars take.
FILLED = 0.8


def _groups_in_a_row(table: pandas.DataFrame, points: float) -> int:
    """Return how many groups fit into a row of `points` without overlapping labels."""
    longest = max(len(line) for label in table.index for line in label.splitlines())
    of_bars = points * FILLED / (LINE * len(table.columns))
    of_labels = points / (GROUP_LETTER * longest + LINE)
    fitting = max(1, min(len(table), int(min(of_bars, of_labels))))
    # Rows of equal length look better than a short last one.
    return math.ceil(len(table) / math.ceil(len(table) / fitting))


def grouped_bars(
    table: pandas.DataFrame,
    settings: Settings,
    unit: str,
    intervals: tuple[pandas.DataFrame, pandas.DataFrame],
    note: str,
) -> Figure:
    """Draw a group of bars for each row of the table and a bar for each column.

    Missing values are labelled n/a. Groups that do not fit into one row continue in the next.

    Args:
        table: the values.
        settings: width and height of the figure, in inches.
        unit: label of the vertical axis.
        intervals: lower and upper ends, shaped like the table; NaN for none.
        note: title of the legend.
    """
    points = 72 * (settings["width"] - AXIS_LABEL_WIDTH)
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
    """Draw one row of grouped bars; `group` is the width of a group in points."""
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
            # NaN draws no line.
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
                # Hides lines of the figure behind the text.
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=3,
            )
    axes.set_xticks(range(len(table)), table.index, fontsize=9)
