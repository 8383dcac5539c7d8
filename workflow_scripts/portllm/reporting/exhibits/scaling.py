"""Figure of scores against the factor by which a patch is multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study import paths, selection
from portllm.study.exhibits import Exhibit, Settings, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from portllm.reporting.figure_style import Drawing


@register
class ScalingFigure(Exhibit):
    """A panel for each version, task and metric. λ = 0 is the un-patched model, λ = 1 the port."""

    group = "figures"
    kind = "scaling"
    summary = "scores against the factor of a patch"
    section = "weights"
    caption = """
        Scores of θ′ + λ·Δθ by the factor λ: the un-patched version at 0, the port at 1. For
        comparison, a change of the same norm in each weight, in a random direction. Bars are
        {level} intervals over the n items (Wilson's for shares of correct items, else normal)."""
    order = 10
    statistics = ("level",)

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the table of scores."""
        return [paths.SCORES]

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether the study scores multiples of a patch."""
        return bool(selection.scaled_cells(config, settings))

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return the methods, which have the factors, too."""
        return {"methods": config["methods"], **super().study_settings(config, settings)}

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are the scores."""
        from portllm.reporting.figure_style import Drawing, interval_note, legend, panels, set_title
        from portllm.reporting.formatting import column_names
        from portllm.scoring import metrics

        numbers = scaled_scores(sources[0], settings)
        names = column_names(numbers)
        parts = list(numbers.groupby(["model", "applied_to", "task", "metric"], sort=False))
        figure, grid = panels(settings, len(parts))
        several = numbers["model"].nunique() > 1
        for axes, ((model, version, task, metric), part) in zip(grid, parts, strict=True):
            _draw_factors(axes, part, metrics.factor(metric))
            title = [*([model] if several else []), version, names[task, metric]]
            set_title(axes, *title, f"n = {part['n'].iloc[0]}")
            _label(axes, is_share=metrics.factor(metric) != 1)
        legend(figure, settings["width"], title=interval_note(settings["statistics"]["level"]))
        return Drawing(figure, numbers)


def _draw_factors(axes: Axes, part: pandas.DataFrame, factor: float) -> None:
    from portllm.reporting.figure_style import GREY, interval_ends, line_style

    for random, label, number in ((False, "λ·Δθ", 0), (True, "random direction, ‖Δθ‖", 5)):
        line = part[part["random"] == random]
        if line.empty:
            continue
        style = line_style(number) | ({"linestyle": "none", "markersize": 6} if random else {})
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


def _label(axes: Axes, *, is_share: bool) -> None:
    from portllm.reporting.figure_style import tidy

    axes.set_xlabel("factor λ of the patch")
    axes.set_ylabel("score (%)" if is_share else "score")
    if is_share:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    tidy(axes)


def scale_of(method: dict[str, Any]) -> float | None:
    """Return the factor λ that a transplant method applies a patch with; None for other methods."""
    if method["kind"] == "direct":
        return 1.0
    return float(method.get("scale", 1.0)) if method["kind"] == "scaled" else None


def scaled_scores(source: Path, settings: Settings) -> pandas.DataFrame:
    """Scores of ports by the factor λ that they were applied with, with intervals.

    Seeds are averaged; they share their items, so the interval is that of one seed. λ = 0 is the
    un-patched model. `random` marks random directions with the patch's norm, placed at λ = 1;
    several draws are averaged like seeds. Only ports of the version that the scaled ports come from
    are compared with them.

    Args:
        source: The table of scores.
        settings: Methods and statistics of the study, and a selection of scores.

    """
    import pandas

    from portllm.comparison import score_table
    from portllm.reporting.formatting import with_intervals

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
    joined = pandas.concat([bare.assign(scale=0.0, random=False), compared.dropna(subset="scale")])
    grouped = joined.groupby([*keys, "random", "scale"], sort=True, as_index=False)
    means = grouped.agg(
        value=("value", "mean"), stderr=("stderr", "mean"), n=("n", "first"), runs=("n", "count")
    )
    order = {
        key: place for place, key in enumerate(places[keys].itertuples(index=False, name=None))
    }
    place = [order[key] for key in means[keys].itertuples(index=False, name=None)]
    means = with_intervals(means, settings["statistics"]["level"]).assign(place=place)
    return means.sort_values(["place", "random", "scale"], ignore_index=True).drop(columns="place")
