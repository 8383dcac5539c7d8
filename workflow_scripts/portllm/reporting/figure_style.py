"""Style of all figures: series that differ without colour, and panels, titles, legends that fit."""

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

# Equal scores give equal files.
matplotlib.rcParams["svg.hashsalt"] = "portllm"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers that it shows."""

    figure: Figure
    numbers: pandas.DataFrame


# Okabe & Ito (2008): told apart by colour-blind readers; the hatches do so without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GREY = "0.35"
# The last of the bars' colours, a yellow, is too light for a line on white.
LINE_COLOURS = (*COLOURS[:-1], "black")
# Width of a letter of the ticks' labels, in points.
TICK_LETTER = 4.6 * 8 / 7
# Narrower panels cannot hold their labels.
PANEL_WIDTH = 2.2
# What a panel's labels beside it take of its width, in inches.
BESIDE = 0.6


def panels(
    settings: Settings, count: int, *, widest: int | None = None, same_scale: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of `count` panels, as many in a row as its width holds."""
    columns = max(1, min(count, widest or count, int(settings["width"] // PANEL_WIDTH)))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(settings["width"], settings["height"] * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=same_scale).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def inner_width(axes: Axes) -> float:
    """About how wide a panel is without the labels beside it, in inches."""
    columns = axes.get_subplotspec().get_gridspec().ncols
    return axes.figure.get_figwidth() / columns - BESIDE


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and line of a series; two of the three tell series apart without colour."""
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def tidy(axes: Axes) -> None:
    """Remove the frame's upper and right sides, and set ticks and labels in small type."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(9)


def set_title(axes: Axes, *lines: str) -> None:
    """Title a panel; lines that are wider than it are broken."""
    # About thirteen letters fit an inch.
    letters = max(1, int(13 * inner_width(axes)))
    broken = [textwrap.fill(line, letters, break_on_hyphens=False) for line in lines]
    axes.set_title("\n".join(broken), fontsize=9)


def interval_ends(part: pandas.DataFrame, factor: float = 1) -> list[pandas.Series]:
    """How far intervals (`low`, `high`) reach below and above their values, for error bars."""
    reach = (part["value"] - part["low"], part["high"] - part["value"])
    # Rounding puts an end that is the value itself a little beyond it.
    return [ends.clip(lower=0) * factor for ends in reach]


def interval_note(level: float) -> str:
    """What error bars are, for a legend."""
    return f"bars: {level_text(level)} intervals over the items"


def legend(
    figure: Figure, width: float, *, order: Iterable[str] = (), title: str | None = None
) -> None:
    """One legend of all panels below them: the series of `order` first, each once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, mark)
    names = list(dict.fromkeys([*(name for name in order if name in found), *found]))
    # About fourteen letters fit an inch; a mark takes six.
    letters = width * 14 / max((len(name) + 6 for name in names), default=1)
    figure.legend(
        [found[name] for name in names],
        names,
        loc="outside lower center",
        ncols=max(1, min(len(names), int(letters))),
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )
