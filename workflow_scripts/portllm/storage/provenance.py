"""What a study cost and what made it, read from the manifests beside its artefacts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.storage import manifests
from portllm.storage.files import read_json


def read(artefacts: Iterable[Path]) -> list[dict[str, Any]]:
    """The manifest of each artefact: a directory's own, a score's result file, a file's beside it.

    Raises InputError where one is missing or cut off.
    """
    return [read_json(_manifest_of(path)) for path in artefacts]


def _manifest_of(artefact: Path) -> Path:
    if artefact.is_dir():
        return artefact / manifests.NAME
    beside = manifests.beside(artefact)
    return beside if beside.exists() else artefact


def costs(manifests: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """One row per stage and kind of device: jobs, hours, peaks of memory.

    Hours are of the wall, summed over jobs; device hours count each device of a job. Shared or
    cached work counts what it cost when it was done. A stage that only links files costs nothing.
    """
    rows = pandas.DataFrame(
        {
            "stage": made["stage"],
            "device": made["cost"]["device"],
            "hours": made["cost"]["wall_seconds"] / 3600,
            "device_hours": made["cost"]["wall_seconds"] * made["cost"]["devices"] / 3600,
            "peak_host_bytes": made["cost"]["peak_host_bytes"],
            "peak_device_bytes": max(made["cost"]["peak_device_bytes"], default=None),
        }
        for made in manifests
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
    """One row per stage, code and set of package versions, with the number of artefacts."""
    rows = pandas.DataFrame(
        {
            "stage": made["stage"],
            "code": made["code"],
            "packages": ", ".join(
                f"{name} {version}" for name, version in sorted(made["packages"].items())
            ),
        }
        for made in manifests
    )
    keys = ["stage", "code", "packages"]
    counted = rows.groupby(keys, sort=False).size().rename("artefacts").reset_index()
    return counted[["stage", "artefacts", "code", "packages"]]
