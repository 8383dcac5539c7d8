"""Style of all figures: series that differ without colour; panels, titles, legends that fit."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from portllm.reporting.formatting import level_text

# A fixed salt, so that equal scores give equal SVG files.
matplotlib.rcParams["svg.hashsalt"] = "portllm"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers that it shows."""

    figure: Figure
    numbers: pandas.DataFrame


# Okabe and Ito (2008), distinguishable for colour-blind readers; hatches work without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GREY = "0.35"
# The last colour, a yellow, is too light for a line on white.
LINE_COLOURS = (*COLOURS[:-1], "black")
# Width of a letter of tick labels, in points.
TICK_LETTER = 4.6 * 8 / 7
# Least width of a panel with labels, in inches.
PANEL_WIDTH = 2.2
# Width of the labels of a panel's vertical axis, in inches.
AXIS_LABEL_WIDTH = 0.6


def panels(
    settings: Settings, count: int, *, widest: int | None = None, same_scale: bool = False
) -> tuple[Figure, list[Axes]]:
    """Create a figure with a grid of `count` panels, as many per row as fit its width."""
    columns = max(1, min(count, widest or count, int(settings["width"] // PANEL_WIDTH)))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(settings["width"], settings["height"] * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=same_scale).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def inner_width(axes: Axes) -> float:
    """Estimate the width of a panel without its axis labels, in inches."""
    columns = axes.get_subplotspec().get_gridspec().ncols
    return axes.figure.get_figwidth() / columns - AXIS_LABEL_WIDTH


def line_style(number: int) -> dict[str, Any]:
    """Return colour, marker and line of a series; the last two distinguish it without colour."""
    # After the last colour, each comes with the next line and marker.
    shape = number + number // len(LINE_COLOURS)
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "marker": MARKERS[shape % len(MARKERS)],
        "linestyle": LINES[shape % len(LINES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def tidy(axes: Axes) -> None:
    """Remove the top and right sides of the frame, and use small ticks and labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(9)


def set_title(axes: Axes, *lines: str) -> None:
    """Set the title of a panel, wrapped to its width."""
    # About 13 letters fit into an inch.
    letters = max(1, int(13 * inner_width(axes)))
    broken = [textwrap.fill(line, letters, break_on_hyphens=False) for line in lines]
    axes.set_title("\n".join(broken), fontsize=9)


def interval_ends(part: pandas.DataFrame, factor: float = 1) -> list[pandas.Series]:
    """Return the lengths of intervals below and above their values, for error bars."""
    lengths = (part["value"] - part["low"], part["high"] - part["value"])
    # Rounding may make a length of zero slightly negative.
    return [length.clip(lower=0) * factor for length in lengths]


def interval_note(level: float) -> str:
    """Describe the error bars, for a legend."""
    return f"bars: {level_text(level)} intervals over the items"


def legend(
    figure: Figure, width: float, *, order: Iterable[str] = (), title: str | None = None
) -> None:
    """Draw one legend below all panels, with every series once; those in `order` come first."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = list(dict.fromkeys([*(name for name in order if name in handles), *handles]))
    # About 14 letters fit into an inch; a handle is as wide as six.
    letters = width * 14 / max((len(name) + 6 for name in names), default=1)
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=max(1, min(len(names), int(letters))),
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )
