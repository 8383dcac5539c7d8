"""Table of what porting costs compared with re-fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study import matrix, paths, selection
from portllm.study.exhibits import Exhibit, Settings, register
from portllm.study.matrix import Config

if TYPE_CHECKING:
    import pandas

    from portllm.reporting.formatting import Table


@register
class EfficiencyTable(Exhibit):
    """Parameters, memory and hours from manifests; means over versions and seeds."""

    group = "tables"
    kind = "efficiency"
    summary = "parameters, memory and hours of porting and of re-fine-tuning"
    section = "cost"
    caption = """
        Porting compared with re-fine-tuning, as their jobs measured it; means over versions and
        seeds. Device memory is the peak of the fullest device, and the sum of all devices' peaks.
        Hours are those of all devices together, or of the processor if there is no device."""
    order = 40
    is_default = True
    shows_published = True

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the patches trained on later versions, and the ports that they compete with."""
        compared = selection.compared_cells(config, settings)
        natives = [paths.patch_path(matrix.native_patch(cell)) for cell in compared]
        return [*natives, *map(paths.adapter_path, compared)]

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are directories of patches and ports, with manifests."""
        import pandas

        from portllm.reporting.formatting import Table, hours_text, memory_text

        keys = ["model", "task", "arm", "device"]
        rows = pandas.DataFrame([_cost_row(path) for path in sources])
        grouped = rows.groupby(keys, sort=False, as_index=False)
        numbers = grouped.mean().merge(grouped.size().rename(columns={"size": "jobs"}), on=keys)
        parameters = [f"{value:,.0f}" for value in numbers["trainable_parameters"]]
        text = numbers[keys].assign(
            **{
                "trainable parameters": parameters,
                "GB per device": memory_text(numbers["peak_device_bytes"]),
                "GB, all devices": memory_text(numbers["sum_device_bytes"]),
                "GB, host": memory_text(numbers["peak_host_bytes"]),
                "hours": hours_text(numbers["hours"]),
                "jobs": numbers["jobs"],
            }
        )
        if settings.get("published"):
            known = _published(Path(settings["published"]))
            text = pandas.concat([text.astype(object), known], ignore_index=True).fillna("–")
        return Table(numbers, text)

    def headline(self, numbers: pandas.DataFrame) -> str | None:
        """Return how much longer training a patch again took."""
        hours = numbers.groupby("arm")["hours"].mean()
        if not {"porting", "re-fine-tuning"} <= set(hours.index) or hours["porting"] == 0:
            return None
        ratio = hours["re-fine-tuning"] / hours["porting"]
        return f"Porting trains nothing; training a patch again took {ratio:.0f} times as long."


def _cost_row(directory: Path) -> dict[str, Any]:
    from portllm.storage import manifests
    from portllm.storage.files import read_json

    manifest = read_json(directory / manifests.NAME)
    cost, names = manifest["cost"], manifest["names"]
    peaks = cost["peak_device_bytes"]
    return {
        "model": names["model"],
        "task": names["task"],
        "arm": "porting" if manifest["stage"] == "transplant" else "re-fine-tuning",
        "trainable_parameters": manifest["trainable_parameters"],
        "devices": cost["devices"],
        "device": cost["device"],
        "peak_device_bytes": max(peaks, default=None),
        "sum_device_bytes": sum(peaks) if peaks else None,
        "peak_host_bytes": cost["peak_host_bytes"],
        # Without a device, the hours are those of the processor.
        "hours": cost["wall_seconds"] * max(cost["devices"], 1) / 3600,
    }


def _published(path: Path) -> pandas.DataFrame:
    """Published costs, with the columns of the table."""
    import pandas

    known = pandas.read_csv(path, comment="#")
    names = {"trainable_parameters": "trainable parameters", "gpu_hours": "hours"}
    names |= {"gpu_memory_gb": "GB, all devices"}
    shown = known.rename(columns=names)
    shown["device"] = ["published: " + source for source in known["source"]]
    return shown[["model", "task", "arm", "device", *names.values()]].astype(object)
