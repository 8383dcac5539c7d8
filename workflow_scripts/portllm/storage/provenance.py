"""Summarise the costs and the software of a study from the manifests of its artefacts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.storage import manifests
from portllm.storage.files import read_json


def read(artefacts: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the manifest of each artefact. A result file of scoring is its own manifest.

    Raises:
        InputError: a manifest is missing or not valid JSON.
    """
    return [read_json(_manifest_of(path)) for path in artefacts]


def _manifest_of(artefact: Path) -> Path:
    manifest = manifests.manifest_path(artefact)
    return manifest if artefact.is_dir() or manifest.exists() else artefact


def costs(manifests: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """Sum up costs: one row per stage and device type, with jobs, hours and peak memory in bytes.

    `hours` is wall time summed over jobs; `device_hours` multiplies it by the devices of each job.
    Shared and cached artefacts count with their original cost.
    """
    rows = pandas.DataFrame(
        {
            "stage": manifest["stage"],
            "device": manifest["cost"]["device"],
            "hours": manifest["cost"]["wall_seconds"] / 3600,
            "device_hours": manifest["cost"]["wall_seconds"] * manifest["cost"]["devices"] / 3600,
            "peak_host_bytes": manifest["cost"]["peak_host_bytes"],
            "peak_device_bytes": max(manifest["cost"]["peak_device_bytes"], default=None),
        }
        for manifest in manifests
    )
    grouped = rows.groupby(["stage", "device"], sort=False)
    return grouped.agg(
        jobs=("hours", "size"),
        hours=("hours", "sum"),
        longest_hours=("hours", "max"),
        device_hours=("device_hours", "sum"),
        peak_host_bytes=("peak_host_bytes", "max"),
        peak_device_bytes=("peak_device_bytes", "max"),
    ).reset_index()


def origins(manifests: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """Count artefacts: one row per stage, code version and set of package versions."""
    rows = pandas.DataFrame(
        {
            "stage": manifest["stage"],
            "code": manifest["code"],
            "packages": ", ".join(
                f"{name} {version}" for name, version in sorted(manifest["packages"].items())
            ),
        }
        for manifest in manifests
    )
    keys = ["stage", "code", "packages"]
    counted = rows.groupby(keys, sort=False).size().rename("artefacts").reset_index()
    return counted[["stage", "artefacts", "code", "packages"]]
