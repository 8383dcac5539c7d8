"""Find damaged results: truncated, emptied or changed, or with files missing.

The workflow writes its outputs atomically, so damage happens later: a full disk, a lost node, an
accidental edit. The manifest of the results says what each file was when it was made. Small files
are hashed at every start of the workflow, large ones only if their size, time of modification or
inode has changed. What is not recorded is checked for its form: sizes, JSON, the last bytes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import files, manifests, results_manifest
from portllm.storage.results_manifest import OWN, Output, RecordedFile, ResultsManifest

NOT_ARTEFACTS = frozenset({"checkpoints", "outdated", "prepared"})
"""Directories below the results that hold work in progress or what was replaced."""
# The last bytes of a complete file, by file name extension.
ENDINGS = {
    **dict.fromkeys((".csv", ".md", ".tex", ".svg", ".jsonl"), b"\n"),
    **dict.fromkeys((".html", ".txt"), b""),
    ".png": b"IEND\xaeB`\x82",
}
MISSING = "missing"


class Checker:
    """Compares results with their records.

    `unrecorded` collects intact artefacts without a record.
    """

    def __init__(self, results: Path, *, contents: bool = False) -> None:
        """Read the records; with `contents`, large files are hashed as well."""
        self.manifest = ResultsManifest(results)
        self._results = results
        self._contents = contents
        self.unrecorded: list[Path] = []

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Yield every damaged or missing artefact with a description of the damage."""
        missing = set(self.manifest.outputs())
        for artefact in artefacts(self._results):
            missing.discard(artefact)
            if problem := self.damage(artefact):
                yield artefact, problem
            elif not self.manifest.recorded(artefact):
                self.unrecorded.append(artefact)
        for output in sorted(missing):
            if problem := self.damage(output):
                yield output, problem

    def record(self, intact: Iterable[Path]) -> None:
        """Record intact artefacts, and the new stamps of files that were hashed."""
        for artefact in intact:
            with suppress(InputError, OSError):
                self.manifest.update(artefact, results_manifest.describe(artefact))
        self.manifest.save()

    def damage(self, artefact: Path) -> str | None:
        """Describe what is wrong with an artefact; None if it is intact."""
        recorded = self.manifest.recorded(artefact)
        try:
            if recorded and not artefact.exists():
                return MISSING
            if artefact.is_dir():
                return self._damage_of_directory(artefact, recorded)
            if recorded:
                return self._damage_of_file(artefact, recorded)
            return _damage_of_form(artefact, contents=self._contents)
        except InputError as error:
            return str(error).removeprefix(f"{artefact}: ")
        except OSError as error:
            return error.strerror
        except (AttributeError, TypeError, ValueError):
            return "its manifest has values of wrong types"

    def _damage_of_file(self, file: Path, recorded: Output) -> str | None:
        own = recorded.get(OWN)
        if own is None:
            return "a file, expected a directory"
        stamp = results_manifest.stamp(file)
        if stamp[0] != own.stamp[0]:
            return f"{stamp[0]:,} bytes, expected {own.stamp[0]:,}"
        is_known = stamp == own.stamp and stamp[0] >= manifests.SMALL and not self._contents
        if is_known:
            return None
        if files.hash_file(file) != own.sha256:
            return "its content has changed"
        if stamp != own.stamp:
            self.manifest.update(file, {OWN: RecordedFile(own.sha256, stamp)})
        return None

    def _damage_of_directory(self, directory: Path, recorded: Output) -> str | None:
        path = directory / manifests.NAME
        own = recorded.get(manifests.NAME)
        if recorded.get(OWN, RecordedFile(None, ())).sha256:
            return "a directory, expected a file"
        if not path.exists():
            return None if own is None else f"{manifests.NAME} is missing"
        if own is not None and files.hash_file(path) != own.sha256:
            return f"the content of {manifests.NAME} has changed"
        manifest = manifests.read_manifest(path)
        times = manifest.get("modified", {})
        renewed: Output = {}

        def is_unchanged(name: str) -> bool:
            if self._contents:
                return False
            present = results_manifest.stamp(directory / name)
            if name in recorded:
                is_same = recorded[name].stamp == present
            else:
                # Manifests of earlier releases have no times. Then the next start compares.
                is_same = times.get(name, present[1]) == present[1]
            if is_same:
                return True
            renewed[name] = RecordedFile(None, present)
            return False

        problem = manifests.content_damage(directory, manifest, is_unchanged)
        if problem is None and recorded and renewed:
            self.manifest.update(directory, {**recorded, **renewed})
        return problem


def _damage_of_form(file: Path, *, contents: bool) -> str | None:
    if file.suffix == ".json":
        content = files.read_json(file)
        if not isinstance(content, dict):
            return None
        # The manifest of a file, or results of scoring, which are the manifest of their samples.
        problem = files.size_mismatch(file.parent, content.get("sizes", {}))
        if problem or not contents:
            return problem
        return files.hash_mismatch(file.parent, content.get("content", {}))
    ending = ENDINGS.get(file.suffix, b"")
    with files.open_regular(file) as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - len(ending)))
        return None if opened.read() == ending else "truncated"


def artefacts(results: Path) -> Iterator[Path]:
    """Yield every artefact below `results`: directories with a manifest, and other files."""
    for folder, subfolders, names in os.walk(results):
        if manifests.NAME in names:
            subfolders.clear()
            yield Path(folder)
            continue
        # Artefacts shared with other checkouts are links to directories, which os.walk skips.
        links = (Path(folder, name) for name in subfolders if Path(folder, name).is_symlink())
        yield from (link for link in links if (link / manifests.NAME).exists())
        subfolders[:] = [
            name for name in subfolders if name not in NOT_ARTEFACTS and not name.startswith(".")
        ]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".json" or path.suffix in ENDINGS:
                yield path


def damaged(results: Path, *, contents: bool = False) -> list[tuple[Path, str]]:
    """List damaged and missing artefacts below `results` with a description of the damage."""
    return list(Checker(results, contents=contents).damaged())
