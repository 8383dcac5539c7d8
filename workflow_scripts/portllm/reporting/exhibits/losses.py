"""Figure of the training losses of updates and patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study import matrix, paths, selection
from portllm.study.exhibits import Exhibit, Settings, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    from portllm.reporting.figure_style import Drawing

UPDATES = "updates"
"""Title of the panel of the versions' own trainings; other panels are named by their task."""


@register
class LossesFigure(Exhibit):
    """A panel for the updates of each model and for the patches of each task."""

    group = "figures"
    kind = "losses"
    summary = "the training losses of updates and patches"
    section = "provenance"
    caption = """
        Training loss of every update and every patch, as logged: the mean over the steps since the
        last point. A patch is named by the version that it was trained on; its seeds share a style.
        A curve that does not fall, or that rises at the end, is a training to look at."""
    order = 50
    is_default = True

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the versions and the patches that the study trains and the figure selects."""
        cells = selection.selected_cells(config, settings)
        existing = matrix.existing_patches(config)
        patches = dict.fromkeys(cell.patch for cell in cells if cell.patch)
        shown = settings.get("versions")
        versions = [
            paths.version_path(model, version)
            for model in dict.fromkeys(cell.model for cell in cells)
            for version in matrix.evolutions(config, model)
            if shown is None or version in shown
        ]
        return [*versions, *(paths.patch_path(patch) for patch in patches if patch not in existing)]

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are directories of versions and patches with manifests."""
        import pandas

        from portllm.errors import InputError
        from portllm.reporting.figure_style import (
            Drawing,
            legend,
            line_style,
            panels,
            set_title,
            tidy,
        )

        numbers = pandas.DataFrame([row for source in sources for row in _curve(source)])
        if numbers.empty:
            raise InputError(f"{sources[0]} and {len(sources) - 1} others record no loss")
        styles = {name: line_style(i) for i, name in enumerate(numbers["version"].unique())}
        parts = list(numbers.groupby(["model", "training"], sort=False))
        figure, grid = panels(settings, len(parts))
        several = numbers["model"].nunique() > 1
        for axes, ((model, training), part) in zip(grid, parts, strict=True):
            for (version, _), curve in part.groupby(["version", "seed"], sort=False):
                # One symbol for each point would hide the curves.
                style = {**styles[version], "marker": "none"}
                axes.plot(curve["step"], curve["loss"], label=version, **style)
            set_title(axes, *([model] if several else []), training)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel("loss (nats per token)")
            tidy(axes)
        legend(figure, settings["width"])
        return Drawing(figure, numbers)


def _curve(directory: Path) -> list[dict[str, Any]]:
    from portllm.storage import manifests
    from portllm.storage.files import read_json

    manifest = read_json(directory / manifests.NAME)
    if manifest["stage"] == "patch":
        names = manifest["names"]
        of_curve = {
            "model": names["model"],
            "training": names["task"],
            "version": names["trained_on"],
            "seed": manifest["parameters"]["seed"],
        }
    else:
        of_curve = {
            "model": directory.parent.name,
            "training": UPDATES,
            "version": directory.name,
            "seed": manifest["parameters"]["recipe"]["seed"],
        }
    points = manifest.get("training", {}).get("losses", [])
    return [{**of_curve, "step": step, "loss": loss} for step, loss in points]
