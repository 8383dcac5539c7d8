"""Tables from the manifests of all artefacts: their costs, and the code that made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study import matrix, paths
from portllm.study.exhibits import Exhibit, Settings, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    from portllm.reporting.formatting import Table


class _OfManifests(Exhibit):
    group = "tables"
    is_default = True

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return all artefacts with a manifest."""
        return paths.artefact_paths(config)

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether the study has any cell."""
        return bool(matrix.cells(config))


@register
class CostsTable(_OfManifests):
    """What all jobs of the study cost."""

    kind = "costs"
    summary = "time and memory of all jobs, by stage"
    section = "cost"
    caption = """
        Time and memory of all jobs, by stage and device. Work that was already done counts with
        what it cost when it was done."""
    order = 50

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are artefacts with manifests."""
        from portllm.reporting.formatting import Table, hours_text, memory_text
        from portllm.storage import provenance

        numbers = provenance.costs(provenance.read(sources))
        text = numbers[["stage", "device", "jobs"]].assign(
            **{
                "hours": hours_text(numbers["hours"]),
                "hours of the longest": hours_text(numbers["longest_hours"]),
                "device hours": hours_text(numbers["device_hours"]),
                "GB, host": memory_text(numbers["peak_host_bytes"]),
                "GB per device": memory_text(numbers["peak_device_bytes"]),
            }
        )
        return Table(numbers, text)


@register
class ProvenanceTable(_OfManifests):
    """Which code and packages made the artefacts."""

    kind = "provenance"
    summary = "code and packages that made the artefacts of each stage"
    section = "provenance"
    caption = "Code and packages that made the artefacts of each stage."
    order = 10

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are artefacts with manifests."""
        from portllm.reporting.formatting import Table
        from portllm.storage import provenance

        numbers = provenance.origins(provenance.read(sources))
        return Table(numbers, numbers)
