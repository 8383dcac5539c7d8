"""Angles between patches and updates, as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study.exhibits import MeasurementExhibit, Settings, register

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from portllm.reporting.figure_style import Drawing
    from portllm.reporting.formatting import Table

NOTES = (
    "In brackets: what random directions would give, the standard deviation of a cosine and the "
    "mean of a share. Columns and rows: the spaces that a change puts out and reacts to. Both "
    "patches of one seed have started from the same random A, which their rows keep; columns are "
    "learnt alone.",
)
# Title, measure, what random directions give, and the number's format.
_COLUMNS = (
    ("cos(Δθ, θ′ − θ)", "update_cosine", "expected_cosine", "{:+.3f}"),
    ("smallest angle, degrees", "update_column_angles", None, "{:.0f}"),
    ("update in its columns", "update_column_energy", "update_column_energy_expected", "{:.0%}"),
    ("cos(Δθ, Δθ′)", "native_cosine", "expected_cosine", "{:+.3f}"),
    ("shared columns", "native_column_similarity", "native_column_expected", "{:.0%}"),
    ("shared rows", "native_row_similarity", "native_row_expected", "{:.0%}"),
)
# Measure of a panel, what to divide it by, the panel's title and its unit.
_PANELS = (
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
# Half the width of the band that holds 95 % of random cosines, in their standard deviations.
_NORMAL_95 = 1.96


_TABLE_KEYS = {
    "by": {
        "description": "What has a row of its own within each version and task.",
        "enum": ["version", "module", "layer"],
    }
}


@register
class GeometryTable(MeasurementExhibit):
    """Angles per version and task, of all weights together or by module or layer."""

    group = "tables"
    kind = "geometry"
    summary = "cosines and angles between patches and updates"
    section = "weights"
    caption = """
        Cosines and angles between the patch and the update, and between the ported and the
        re-trained patch."""
    order = 20
    measurement = "geometry"
    keys = _TABLE_KEYS

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are measured angles."""
        from portllm.reporting import measurements
        from portllm.reporting.formatting import Table

        by = settings.get("by", "version")
        keys = measurements.NAMES if by == "version" else [*measurements.NAMES, by]
        numbers = measurements.angles(sources, keys)
        text = numbers[keys].copy()
        for name in ("model", "trained_on"):
            if text[name].nunique() == 1:
                text = text.drop(columns=name)
        text = text.rename(columns={"trained_on": "trained on"})
        text = text.assign(**{title: _texts(numbers, *column) for title, *column in _COLUMNS})
        return Table(numbers, text, NOTES)


def _texts(numbers: pandas.DataFrame, name: str, expected: str | None, shown: str) -> list[str]:
    """Values as text, each with the value expected of random directions in brackets."""
    import pandas

    sign = "±{:.3f}" if expected == "expected_cosine" else shown
    texts = []
    for place, value in enumerate(numbers[name]):
        random = "" if expected is None else f" ({sign.format(numbers[expected].iloc[place])})"
        texts.append("–" if pandas.isna(value) else shown.format(value) + random)
    return texts


@register
class GeometryFigure(MeasurementExhibit):
    """Cosines and shared subspaces per layer, a line for each module."""

    group = "figures"
    kind = "geometry"
    summary = "cosines and shared subspaces of patches and updates, by layer"
    section = "weights"
    caption = """
        Angles in every layer, a line for each kind of weight, means over versions, tasks and seeds.
        Above: the cosine of the ported patch Δθ with the update θ′ − θ, and with the patch Δθ′
        trained on the version; 95 % of random directions lie between the dashed lines. Below: how
        much of their column spaces (of the update, the leading directions) they share, as a
        multiple of what random subspaces share."""
    order = 20
    measurement = "geometry"

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are measured angles."""
        from portllm.reporting import measurements
        from portllm.reporting.figure_style import Drawing, legend, panels, set_title

        place = ["model", "module", "layer"]
        # The updates of a chain are not independent draws: the band is that of one version.
        each = measurements.angles(sources, [*measurements.NAMES, "module", "layer"])
        by_layer = each[each["layer"].notna()].groupby(place, sort=False, as_index=False)
        numbers = by_layer.mean(numeric_only=True)
        models = list(dict.fromkeys(numbers["model"]))
        figure, grid = panels(settings, len(_PANELS) * len(models), widest=2)
        for number, axes in enumerate(grid):
            model = models[number // len(_PANELS)]
            measure, expected, title, unit = _PANELS[number % len(_PANELS)]
            part = numbers[numbers["model"] == model]
            _draw_layers(axes, part, list(dict.fromkeys(numbers["module"])), measure, expected)
            set_title(axes, *([model] if len(models) > 1 else []), *title.splitlines())
            _label(axes, unit)
        legend(figure, settings["width"])
        return Drawing(figure, numbers)


def _label(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    from portllm.reporting.figure_style import tidy

    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)


def _draw_layers(
    axes: Axes, part: pandas.DataFrame, modules: list[str], measure: str, expected: str | None
) -> None:
    """Draw a measure by layer, a line for each module, and what random directions give."""
    from portllm.reporting.figure_style import GREY, line_style

    for module, line in part.groupby("module", sort=False):
        line = line.sort_values("layer")
        values = line[measure] if expected is None else line[measure] / line[expected]
        # A mark for each of many layers would hide the lines.
        every = max(1, len(line) // 8)
        style = line_style(modules.index(module)) | {
            "markevery": (modules.index(module) % every, every)
        }
        axes.plot(line["layer"], values, label=module, **style)
    if expected is None:
        _mark_random_cosines(axes, part, measure)
    else:
        axes.axhline(1, color=GREY, linestyle="--", linewidth=0.9)
        axes.set_ylim(bottom=0)


def _mark_random_cosines(axes: Axes, part: pandas.DataFrame, measure: str) -> None:
    """Mark where 95 % of random directions lie, and keep small cosines small."""
    from portllm.reporting.figure_style import GREY

    bounds = _NORMAL_95 * part.groupby("layer")["expected_cosine"].max()
    axes.axhline(0, color=GREY, linewidth=0.6)
    for sign, label in ((1, "random"), (-1, None)):
        style = {"color": GREY, "linestyle": "--", "linewidth": 0.9}
        axes.plot(bounds.index, sign * bounds, label=label, **style)
    # On a scale of their own, angles this close to a right angle would look large.
    axes.set_ylim(min(-0.05, 1.1 * part[measure].min()), max(0.05, 1.1 * part[measure].max()))
