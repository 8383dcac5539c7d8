"""Table of the norms of the naive update and of what separates two patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study import selection
from portllm.study.exhibits import MeasurementExhibit, Settings, register
from portllm.study.matrix import Cell, Config

if TYPE_CHECKING:
    from portllm.reporting.formatting import Table


@register
class NormsTable(MeasurementExhibit):
    """Norms per version and task; the relative residual is ‖Δθ′ − Δθ‖ / ‖Δθ‖."""

    group = "tables"
    kind = "norms"
    summary = "norms of θ′ + Δθ and of Δθ′ − Δθ"
    section = "weights"
    caption = """
        Norms (‖·‖) and largest singular values (σ₁) of the naive update θ′ + Δθ and of the residual
        Δθ′ − Δθ between the patch trained on the version and the ported patch; means over seeds."""
    order = 10
    is_default = True
    measurement = "norms"

    def cells(self, config: Config, settings: Settings) -> list[Cell]:
        """Return all compared ports; the version of their patch may be outside the study."""
        return selection.compared_cells(config, settings)

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are measured norms."""
        import pandas

        from portllm.reporting.formatting import Table
        from portllm.storage.files import read_json

        keys = ["model", "version", "trained_on", "task"]
        measured = pandas.DataFrame([read_json(path) for path in sources])
        grouped = measured.drop(columns="seed").groupby(keys, sort=False, as_index=False)
        numbers = grouped.mean().merge(grouped.size().rename(columns={"size": "seeds"}), on=keys)
        text = numbers[keys].assign(
            **{
                "‖θ′ + Δθ‖": [f"{value:.2f}" for value in numbers["naive_norm"]],
                "σ₁(θ′ + Δθ)": [f"{value:.2f}" for value in numbers["naive_largest"]],
                "‖Δθ′ − Δθ‖": [f"{value:.2f}" for value in numbers["residual_norm"]],
                "σ₁(Δθ′ − Δθ)": [f"{value:.2f}" for value in numbers["residual_largest"]],
                "‖Δθ′ − Δθ‖ / ‖Δθ‖": [f"{value:.2f}" for value in numbers["relative_residual"]],
            }
        )
        return Table(numbers, text.rename(columns={"trained_on": "trained on"}))
