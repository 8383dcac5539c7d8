"""What made an artefact, from what, and what it cost: a small JSON file beside each."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import portllm
from portllm.files import hash_file, hash_files, hash_value, read_json, write_json

NAME = "manifest.json"
# Snakemake puts this file into directories that it tracks; it is no part of the content.
FOREIGN = frozenset({NAME, ".snakemake_timestamp"})


@dataclass(frozen=True)
class Cost:
    """What a job cost. Bytes are peaks; device bytes are listed per device."""

    wall_seconds: float
    peak_host_bytes: int
    device: str
    devices: int
    peak_device_bytes: list[int]


def device_cost() -> dict[str, Any]:
    """Name, number and peak bytes of the devices that torch has used in this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {"device": "cpu", "devices": 0, "peak_device_bytes": []}
    count = torch.cuda.device_count()
    return {
        "device": torch.cuda.get_device_name(0),
        "devices": count,
        "peak_device_bytes": [torch.cuda.max_memory_allocated(index) for index in range(count)],
    }


class Meter:
    """Measures this process's cost from the meter's making to its reading."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def read(self, **devices: Any) -> Cost:
        """The cost so far. `devices` replaces what this process knows of the devices."""
        # Linux counts ru_maxrss in KiB. Children matter where the work is another program's.
        usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return Cost(
            wall_seconds=round(time.perf_counter() - self._start, 3),
            peak_host_bytes=max(resource.getrusage(who).ru_maxrss for who in usage) * 1024,
            **(devices or device_cost()),
        )


def code_version() -> str:
    """The project's version and, in a git checkout, its commit ("+" marks local changes)."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return portllm.__version__
    return f"{portllm.__version__} ({commit})"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of the named packages, those absent left out."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe(
    *,
    stage: str,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    content: dict[str, str],
    cost: Cost,
    packages: Iterable[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Put a manifest together: `inputs` by content hash, `content` as file → SHA-256."""
    return {
        "stage": stage,
        "parameters": parameters,
        "inputs": inputs,
        "content": content,
        "content_hash": hash_value(content),
        "code": code_version(),
        "packages": package_versions(packages),
        "cost": asdict(cost),
        "host_cores": os.cpu_count(),
        **more,
    }


def write_for_directory(
    directory: Path, *, known: Mapping[str, str] = MappingProxyType({}), **parts: Any
) -> None:
    """Hash the files of `directory` and write its manifest into it. Parts as in `describe`.

    Files whose hash is `known` are not read again.
    """
    content = hash_files(directory, leave_out=FOREIGN, known=known)
    write_json(directory / NAME, describe(content=content, **parts))


def beside(file: Path) -> Path:
    """Where the manifest of a single-file artefact lies."""
    return file.with_suffix(".manifest.json")


def write_for_file(file: Path, **parts: Any) -> None:
    """Write the manifest of a single-file artefact beside it. Parts as in `describe`."""
    content = {file.name: hash_file(file)}
    write_json(beside(file), describe(content=content, **parts))


def content_hash(artefact: Path, *, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """Content hash of an artefact, from its manifest or, where it has none, from its files.

    Files whose hash is `known` are not read.
    """
    written = artefact / NAME if artefact.is_dir() else beside(artefact)
    if written.exists():
        return read_json(written)["content_hash"]
    if artefact.is_dir():
        return hash_value(hash_files(artefact, leave_out=FOREIGN, known=known))
    return hash_value({artefact.name: hash_file(artefact)})
