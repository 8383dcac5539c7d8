"""What made an artefact, from what, and what it cost: a small JSON file beside each."""

import importlib.metadata
import os
import platform
import re
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
from portllm.errors import InputError
from portllm.storage.files import (
    hash_file,
    hash_files,
    hash_value,
    misfit,
    read_json,
    sizes,
    write_json,
)

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

    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self._start

    def read(self, *, earlier_seconds: float = 0, **devices: Any) -> Cost:
        """The cost so far, on top of `earlier_seconds` of a run that this one continues.

        `devices` replaces what this process knows of the devices.
        """
        # Children matter where the work is another program's.
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return Cost(
            wall_seconds=round(earlier_seconds + self.seconds(), 3),
            peak_host_bytes=max(_own_peak(), children),
            **(devices or device_cost()),
        )


def _own_peak() -> int:
    """Bytes of host memory that this program has had at most.

    Not the system's ru_maxrss where it can be helped: that of who started the program counts there.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    found = sizes(directory, leave_out=FOREIGN)
    write_json(directory / NAME, describe(content=content, sizes=found, **parts))


def beside(file: Path) -> Path:
    """Where the manifest of a single-file artefact lies."""
    return file.with_suffix(".manifest.json")


def write_for_file(file: Path, **parts: Any) -> None:
    """Write the manifest of a single-file artefact beside it. Parts as in `describe`."""
    content = {file.name: hash_file(file)}
    found = {file.name: file.stat().st_size}
    write_json(beside(file), describe(content=content, sizes=found, **parts))


def _written_for(artefact: Path) -> Path:
    return artefact / NAME if artefact.is_dir() else beside(artefact)


def check_whole(artefact: Path) -> None:
    """Raise InputError where an artefact is no longer what its manifest says.

    Quick: a file that is missing or cut off is noticed, one whose bytes were changed is not.
    """
    written = _written_for(artefact)
    if not written.exists():
        return
    folder = artefact if artefact.is_dir() else artefact.parent
    problem = misfit(folder, read_json(written).get("sizes", {}))
    if problem:
        raise InputError(
            f"{artefact} was damaged after it was made: {problem}; run Snakemake again, which "
            "makes it anew"
        )


def content_hash(artefact: Path, *, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """Content hash of an artefact, from its manifest or, where it has none, from its files.

    Files whose hash is `known` are not read. Raises InputError where files of the artefact are
    missing or cut off.
    """
    check_whole(artefact)
    written = _written_for(artefact)
    if written.exists():
        return read_json(written)["content_hash"]
    if artefact.is_dir():
        return hash_value(hash_files(artefact, leave_out=FOREIGN, known=known))
    return hash_value({artefact.name: hash_file(artefact)})
