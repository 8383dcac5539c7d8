"""Tables and figures of any kind, made as the programs make them."""

from pathlib import Path
from typing import Any

from portllm.reporting import registry
from portllm.reporting.figure_style import Drawing
from portllm.reporting.formatting import Table

KINDS = registry.load()


def make_table(kind: str, sources: list[Path], settings: dict[str, Any]) -> Table:
    return KINDS["tables", kind].make(sources, settings)


def make_figure(kind: str, sources: list[Path], settings: dict[str, Any]) -> Drawing:
    return KINDS["figures", kind].make(sources, settings)
