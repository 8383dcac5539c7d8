"""Manifests: JSON files that record how an artefact was made, from what, and at what cost."""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import portllm
from portllm.errors import InputError
from portllm.storage import environments
from portllm.storage.files import (
    hash_file,
    hash_files,
    hash_mismatch,
    hash_value,
    read_object,
    size_mismatch,
    sizes,
    write_json,
)

NAME = "manifest.json"
# Not part of the content: the manifest itself, and the file that Snakemake adds to directories.
NOT_CONTENT = frozenset({NAME, ".snakemake_timestamp"})
SMALL = 1 << 20
"""Smaller files, in bytes, are always read again; larger ones only if their time has changed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a job: wall time, number of devices, peak memory (one entry per device)."""

    wall_seconds: float
    peak_host_bytes: int
    device: str
    devices: int
    peak_device_bytes: list[int]


def device_cost() -> dict[str, Any]:
    """Return `device`, `devices` and `peak_device_bytes` of torch in this process."""
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
    """Measures the cost of this process, starting when the meter is created."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the wall time since the start, in seconds."""
        return time.perf_counter() - self._start

    def read(self, *, earlier_seconds: float = 0, **devices: Any) -> Cost:
        """Return the cost so far.

        Args:
            earlier_seconds: wall time of the interrupted run that this one resumes.
            devices: values as `device_cost` returns them, for work in another process.
        """
        # Some programs do their work in a child process.
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return Cost(
            wall_seconds=round(earlier_seconds + self.seconds(), 3),
            peak_host_bytes=max(_own_peak(), children),
            **(devices or device_cost()),
        )


def _own_peak() -> int:
    """Return the peak host memory of this process in bytes.

    VmHWM, because ru_maxrss survives exec and would include the memory of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def code_version(package: Path = Path(portllm.__file__).parent) -> str:
    """Return the project's version and, in its own git checkout, the commit ("+": local changes).

    A package that is installed or copied into another project's repository has no commit of its
    own: git would name that repository's.
    """
    try:
        checkout = Path(_git(package, "rev-parse", "--show-toplevel"))
        if (checkout / "workflow_scripts" / "portllm").resolve() != package.resolve():
            return portllm.__version__
        return f"{portllm.__version__} ({_git(package, 'describe', '--always', '--dirty=+')})"
    except (OSError, subprocess.CalledProcessError):
        return portllm.__version__


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of the named packages; missing packages are omitted."""
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
    """Build a manifest.

    Args:
        stage: the stage of the workflow.
        parameters: the settings that decide the result.
        inputs: content hash of each input, by name.
        content: SHA-256 of each file of the artefact, by relative path.
        cost: what the job cost.
        packages: names of the packages whose versions are recorded.
        more: further keys of the manifest.
    """
    return {
        "stage": stage,
        "parameters": parameters,
        "inputs": inputs,
        "content": content,
        "content_hash": hash_value(content),
        "code": code_version(),
        "packages": package_versions(packages),
        "environment": environments.provenance(),
        "cost": asdict(cost),
        "host_cores": os.cpu_count(),
        **more,
    }


def write_for_directory(
    directory: Path, *, known: Mapping[str, str] = MappingProxyType({}), **parts: Any
) -> None:
    """Hash the files of a directory and write its manifest into it.

    Args:
        directory: the artefact.
        known: hashes by relative path that were computed earlier; these files are not read again.
        parts: the other arguments of `describe`.
    """
    content = hash_files(directory, exclude=NOT_CONTENT, known=known)
    written_sizes = sizes(directory, exclude=NOT_CONTENT)
    # A rename of the directory keeps these times, so that its users need not read weights twice.
    modified = {
        name: (directory / name).stat().st_mtime_ns
        for name, size in written_sizes.items()
        if size >= SMALL
    }
    parts["modified"] = modified
    write_json(directory / NAME, describe(content=content, sizes=written_sizes, **parts))


def manifest_path(artefact: Path) -> Path:
    """Return the path of an artefact's manifest: in the directory, or next to the file."""
    return artefact / NAME if artefact.is_dir() else artefact.with_suffix(".manifest.json")


def write_for_file(file: Path, **parts: Any) -> None:
    """Write the manifest of a single-file artefact next to it.

    Args:
        file: the artefact.
        parts: the other arguments of `describe`.
    """
    content = {file.name: hash_file(file)}
    written_sizes = {file.name: file.stat().st_size}
    write_json(manifest_path(file), describe(content=content, sizes=written_sizes, **parts))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        InputError: it is missing, or no manifest.
    """
    return read_object(path, sizes=dict, content=dict, content_hash=str, modified=dict)


def content_damage(
    folder: Path, manifest: Mapping[str, Any], is_unchanged: Callable[[str], bool]
) -> str | None:
    """Describe the first file that is not what a manifest records; None if all are.

    Files of `SMALL` bytes or more are read only if `is_unchanged`, which compares times, says no.

    Args:
        folder: the directory of the files.
        manifest: the content of the manifest.
        is_unchanged: whether the file of a name is known to be as it was when it was hashed.

    Raises:
        InputError: a file cannot be read.
    """
    hashes, expected_sizes = manifest.get("content", {}), manifest.get("sizes", {})
    if problem := size_mismatch(folder, expected_sizes):
        return problem
    if "content_hash" in manifest and manifest["content_hash"] != hash_value(hashes):
        return "its manifest has changed"
    read = {
        name: digest
        for name, digest in hashes.items()
        if expected_sizes.get(name, 0) < SMALL or not is_unchanged(name)
    }
    return hash_mismatch(folder, read)


def check_intact(artefact: Path) -> None:
    """Check that an artefact's files are those that its manifest records.

    A large file of a directory is not read if its time of modification is the recorded one. An
    artefact without a manifest passes.

    Raises:
        InputError: a file is missing, truncated or changed.
    """
    manifest = manifest_path(artefact)
    if not manifest.exists():
        return
    folder = artefact if artefact.is_dir() else artefact.parent
    recorded = read_manifest(manifest)
    times = recorded.get("modified", {})
    problem = content_damage(
        folder, recorded, lambda name: (folder / name).stat().st_mtime_ns == times.get(name)
    )
    if problem:
        raise InputError(f"{artefact} is damaged: {problem}; rerun Snakemake to rebuild it")


def is_recorded(file: Path) -> bool:
    """Whether a JSON file of an artefact's directory can be read and is as its manifest records."""
    manifest = file.parent / NAME
    try:
        read_object(file)
        recorded = read_manifest(manifest) if manifest.exists() else {}
        digest = recorded.get("content", {}).get(file.name)
        return digest is None or digest == hash_file(file)
    except InputError:
        return False


def content_hash(artefact: Path, *, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the content hash of an artefact, from its manifest if it has one, else computed.

    Args:
        artefact: a file or directory.
        known: hashes by relative path that were computed earlier; these files are not read.

    Raises:
        InputError: a file of the artefact is missing, truncated or changed.
    """
    check_intact(artefact)
    manifest = manifest_path(artefact)
    recorded = read_manifest(manifest) if manifest.exists() else {}
    if "content_hash" in recorded:
        return recorded["content_hash"]
    if artefact.is_dir():
        return hash_value(hash_files(artefact, exclude=NOT_CONTENT, known=known))
    return hash_value({artefact.name: hash_file(artefact)})
