"""Table of how far each version's weights are from the base's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study import paths, selection
from portllm.study.exhibits import Exhibit, Settings, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    import pandas

    from portllm.reporting.formatting import Table


@register
class VersionsTable(Exhibit):
    """Relative Frobenius norms of all updates."""

    group = "tables"
    kind = "versions"
    summary = "how far each version's weights are from the base's"
    section = "study"
    caption = """
        Distance of each version's weights from those of its base: Frobenius norms over all weights.
        If a version hardly moved, its scores say little about porting."""
    order = 20
    is_default = True

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the measured movement of every version."""
        return [paths.movement_path(*place) for place in selection.moved_versions(config)]

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are measurements of movement."""
        import pandas

        from portllm.reporting.formatting import Table
        from portllm.storage.files import read_json

        numbers = pandas.DataFrame([read_json(path) for path in sources])
        text = pandas.DataFrame(
            {
                "model": numbers["model"],
                "version": numbers["version"],
                "parameters": [f"{value:,}" for value in numbers["parameters"]],
                "‖θ‖": [f"{value:.2f}" for value in numbers["base_norm"]],
                "‖θ′ − θ‖": [f"{value:.2f}" for value in numbers["difference_norm"]],
                "‖θ′ − θ‖ / ‖θ‖": [f"{value:.1%}" for value in numbers["relative"]],
            }
        )
        return Table(numbers, text)

    def headline(self, numbers: pandas.DataFrame) -> str:
        """Return the range of distances."""
        moved = numbers["relative"]
        return (
            f"{len(moved)} later versions, whose weights lie {moved.min():.1%} to "
            f"{moved.max():.1%} of the base's norm away from it."
        )
