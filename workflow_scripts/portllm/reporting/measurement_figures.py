"""Figures of what the analysis measured of patches and updates, and of scores against scale."""

from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from portllm import statistics
from portllm.comparison import score_table
from portllm.reporting import measurement_tables
from portllm.reporting.figure_style import (
    COLOURS,
    LINES,
    MARKERS,
    Drawing,
    Settings,
    interval_ends,
    interval_note,
    legend,
    panels,
    set_title,
)
from portllm.reporting.formatting import column_names, with_intervals
from portllm.scoring import metrics

GREY = "0.35"
# The last of the bars' colours, a yellow, is too light for a line on white.
LINE_COLOURS = (*COLOURS[:-1], "black")
# Half the width of the band that holds 95 % of random cosines, in their standard deviations.
NORMAL_95 = 1.96


def _style(number: int) -> dict[str, Any]:
    """Colour, marker and line of a series; two of the three tell series apart without colour."""
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(9)


# What a panel shows, as a multiple of what random subspaces give where that is named, its words
# and its unit.
_GEOMETRY = (
    ("update_cosine", None, "patch and update\ncos(Δθ, θ′ − θ)", "cosine"),
    ("native_cosine", None, "carried and re-trained patch\ncos(Δθ, Δθ′)", "cosine"),
    (
        "update_column_similarity",
        "update_column_expected",
        "patch and update\nshared column space",
        "multiple of random",
    ),
    (
        "native_column_similarity",
        "native_column_expected",
        "carried and re-trained patch\nshared column space",
        "multiple of random",
    ),
)


def _cosine_axes(axes: Axes, part: pandas.DataFrame, measure: str) -> None:
    """Mark where 95 % of random directions lie, and keep small cosines small."""
    bounds = NORMAL_95 * part.groupby("layer")["expected_cosine"].max()
    axes.axhline(0, color=GREY, linewidth=0.6)
    for sign, label in ((1, "random"), (-1, None)):
        style = {"color": GREY, "linestyle": "--", "linewidth": 0.9}
        axes.plot(bounds.index, sign * bounds, label=label, **style)
    # Angles so near to a right one would look large at a scale of their own.
    axes.set_ylim(min(-0.05, 1.1 * part[measure].min()), max(0.05, 1.1 * part[measure].max()))


def geometry(sources: list[Path], settings: Settings) -> Drawing:
    """Cosines and shared subspaces per layer, a line for each module; means over the rest.

    Dashed grey is what random directions give: the 95 % band of a cosine, of a share its mean.
    """
    place = ["model", "module", "layer"]
    # The updates of a chain are no independent draws: the band is that of one version.
    each = measurement_tables.angles(sources, [*measurement_tables.NAMES, "module", "layer"])
    found = each[each["layer"].notna()].groupby(place, sort=False, as_index=False)
    found = found.mean(numeric_only=True)
    models = list(dict.fromkeys(found["model"]))
    figure, grid = panels(settings, len(_GEOMETRY) * len(models), widest=2)
    modules = list(dict.fromkeys(found["module"]))
    for number, axes in enumerate(grid):
        model = models[number // len(_GEOMETRY)]
        measure, expected, words, unit = _GEOMETRY[number % len(_GEOMETRY)]
        part = found[found["model"] == model]
        for module, line in part.groupby("module", sort=False):
            line = line.sort_values("layer")
            values = line[measure] if expected is None else line[measure] / line[expected]
            # A mark for each of many layers would hide the lines.
            every = max(1, len(line) // 8)
            style = _style(modules.index(module)) | {
                "markevery": (modules.index(module) % every, every)
            }
            axes.plot(line["layer"], values, label=module, **style)
        if expected is None:
            _cosine_axes(axes, part, measure)
        else:
            axes.axhline(1, color=GREY, linestyle="--", linewidth=0.9)
            axes.set_ylim(bottom=0)
        set_title(axes, *([model] if len(models) > 1 else []), *words.splitlines())
        axes.set_xlabel("layer")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes)
    legend(figure, settings["width"])
    return Drawing(figure, found)


def loss_slices(sources: list[Path], settings: Settings) -> Drawing:
    """Loss from the carried patch (t = 0) to the re-trained one (t = 1): a panel for each version.

    Means over seeds, whose number is in the title where there are several; bars are the normal
    intervals of one seed's mean over its items. The un-patched model's loss is in the title.
    """
    found = measurement_tables.slices(sources)
    level = settings["statistics"]["level"]
    # One item has no standard error.
    errors = pandas.to_numeric(found["stderr"])
    low, high = statistics.normal_interval(found["loss"], errors, level)
    found = found.assign(low=low, high=high, level=level)
    parts = list(found.groupby(["model", "task", "version"], sort=False))
    several = [name for name in ("model", "task") if found[name].nunique() > 1]
    figure, grid = panels(settings, len(parts), same_scale=not several)
    for axes, (_, part) in zip(grid, parts, strict=True):
        points = part.groupby("t", sort=True).agg(
            value=("loss", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            seeds=("seed", "nunique"),
        )
        axes.errorbar(
            points.index,
            points["value"],
            yerr=interval_ends(points),
            color=COLOURS[0],
            marker=".",
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label="line between the patches",
        )
        for t, label, number in ((0.0, "carried patch", 5), (1.0, "re-trained patch", 2)):
            style = {**_style(number), "linestyle": "none", "markersize": 7}
            axes.plot([t], [points.loc[t, "value"]], label=label, zorder=3, **style)
        seeds = int(points["seeds"].max())
        title = [part[name].iloc[0] for name in (*several, "version")]
        title[-1] += f", {seeds} seeds" if seeds > 1 else ""
        title.append(f"n = {part['n'].iloc[0]}, un-patched: {part['un_patched'].mean():.2f}")
        set_title(axes, *title)
        axes.set_xlabel("t")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("loss (nats per token)")
        _tidy(axes)
    for axes in grid:
        axes.set_ylim(bottom=0)
    legend(figure, settings["width"], title=interval_note(level))
    return Drawing(figure, found)


def scale_of(method: dict[str, Any]) -> float | None:
    """The factor λ of the patch that a transplant method applies; None where it is no factor."""
    if method["kind"] == "direct":
        return 1.0
    return float(method.get("scale", 1.0)) if method["kind"] == "scaled" else None


def scaled_scores(source: Path, settings: Settings) -> pandas.DataFrame:
    """Scores of ports by the factor λ that they were applied with, with intervals.

    Several seeds are averaged; they share their items, so the interval is that of one.

    λ = 0 is the un-patched model. `random` marks directions drawn at random with the patch's norm,
    at the λ of 1 that their norm is; several draws are averaged as seeds are. Only ports of the
    version that the scaled ports come from are compared with them.
    """
    table = score_table.selected(score_table.read(source), settings)
    methods = settings["methods"]
    kinds = {name: method["kind"] for name, method in methods.items()}
    scales = {name: scale_of(method) for name, method in methods.items()}
    ported = (table["trained_on"] != score_table.NONE) & (
        table["trained_on"] != table["applied_to"]
    )
    keys = ["model", "task", "metric", "applied_to"]
    swept = table[ported & (table["method"].map(kinds) == "scaled")]
    places = swept[[*keys, "trained_on"]].drop_duplicates()
    compared = table[ported].merge(places, on=[*keys, "trained_on"])
    compared["scale"] = compared["method"].map(scales)
    compared["random"] = compared["method"].map(kinds) == "random_direction"
    compared.loc[compared["random"], "scale"] = 1.0
    bare = table[table["trained_on"] == score_table.NONE].merge(
        places[keys].drop_duplicates(), on=keys
    )
    found = pandas.concat([bare.assign(scale=0.0, random=False), compared.dropna(subset="scale")])
    grouped = found.groupby([*keys, "random", "scale"], sort=True, as_index=False)
    means = grouped.agg(
        value=("value", "mean"), stderr=("stderr", "mean"), n=("n", "first"), runs=("n", "count")
    )
    order = {
        key: place for place, key in enumerate(places[keys].itertuples(index=False, name=None))
    }
    place = [order[key] for key in means[keys].itertuples(index=False, name=None)]
    means = with_intervals(means, settings["statistics"]["level"]).assign(place=place)
    return means.sort_values(["place", "random", "scale"], ignore_index=True).drop(columns="place")


def scaling(sources: list[Path], settings: Settings) -> Drawing:
    """Scores against the factor λ of the patch, with intervals, and random directions beside.

    A panel for each version, task and metric. λ = 0 is the un-patched model, λ = 1 the port.
    """
    found = scaled_scores(sources[0], settings)
    names = column_names(found)
    parts = list(found.groupby(["model", "applied_to", "task", "metric"], sort=False))
    figure, grid = panels(settings, len(parts))
    several = found["model"].nunique() > 1
    for axes, ((model, version, task, metric), part) in zip(grid, parts, strict=True):
        factor = metrics.factor(metric)
        is_share = factor != 1
        for random, label, number in ((False, "λ·Δθ", 0), (True, "random direction, ‖Δθ‖", 5)):
            line = part[part["random"] == random]
            if line.empty:
                continue
            style = _style(number) | ({"linestyle": "none", "markersize": 6} if random else {})
            axes.errorbar(
                line["scale"],
                line["value"] * factor,
                yerr=interval_ends(line, factor),
                label=label,
                elinewidth=0.8,
                capsize=2,
                **style,
            )
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
        title = [*([model] if several else []), version, names[task, metric]]
        set_title(axes, *title, f"n = {part['n'].iloc[0]}")
        axes.set_xlabel("factor λ of the patch")
        axes.set_ylabel("score (%)" if is_share else "score")
        if is_share:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _tidy(axes)
    legend(figure, settings["width"], title=interval_note(settings["statistics"]["level"]))
    return Drawing(figure, found)
