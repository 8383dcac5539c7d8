"""Figure of the loss on the line between a ported and a re-trained patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study.exhibits import MeasurementExhibit, Settings, register

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from portllm.reporting.figure_style import Drawing


@register
class LossSlicesFigure(MeasurementExhibit):
    """A panel for each version.

    Lines are means over seeds, whose number is in the title if there are several; bars are the
    normal intervals of one seed's mean over its items. The un-patched model's loss is in the title.
    """

    group = "figures"
    kind = "loss_slices"
    summary = "the loss on the line between a ported and a re-trained patch"
    section = "weights"
    caption = """
        The loss on the line θ′ + (1 − t)·Δθ + t·Δθ′ from the ported patch (t = 0) to the patch
        trained on the version (t = 1), on n items that lm-eval scores and no patch was trained on.
        Bars are {level} intervals over the items. A rise between the two is a barrier: they are
        different solutions of the same task."""
    order = 30
    measurement = "loss_slices"
    statistics = ("level",)

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are measured loss slices."""
        import pandas

        from portllm import statistics
        from portllm.reporting import measurements
        from portllm.reporting.figure_style import Drawing, interval_note, legend, panels, set_title

        numbers = measurements.slices(sources)
        level = settings["statistics"]["level"]
        # The standard error of one item is missing.
        errors = pandas.to_numeric(numbers["stderr"])
        low, high = statistics.normal_interval(numbers["loss"], errors, level)
        numbers = numbers.assign(low=low, high=high, level=level)
        parts = list(numbers.groupby(["model", "task", "version"], sort=False))
        several = [name for name in ("model", "task") if numbers[name].nunique() > 1]
        figure, grid = panels(settings, len(parts), same_scale=not several)
        for axes, (_, part) in zip(grid, parts, strict=True):
            seeds = _draw_slice(axes, part)
            title = [part[name].iloc[0] for name in (*several, "version")]
            title[-1] += f", {seeds} seeds" if seeds > 1 else ""
            title.append(f"n = {part['n'].iloc[0]}, un-patched: {part['un_patched'].mean():.2f}")
            set_title(axes, *title)
            _label(axes)
        for axes in grid:
            axes.set_ylim(bottom=0)
        legend(figure, settings["width"], title=interval_note(level))
        return Drawing(figure, numbers)


def _label(axes: Axes) -> None:
    from portllm.reporting.figure_style import tidy

    axes.set_xlabel("t")
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("loss (nats per token)")
    tidy(axes)


def _draw_slice(axes: Axes, part: pandas.DataFrame) -> int:
    """Draw the loss on one line, mark both patches, and return the number of seeds."""
    from portllm.reporting.figure_style import COLOURS, interval_ends, line_style

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
        style = {**line_style(number), "linestyle": "none", "markersize": 7}
        axes.plot([t], [points.loc[t, "value"]], label=label, zorder=3, **style)
    return int(points["seeds"].max())
