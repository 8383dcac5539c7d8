"""The manifest of a results directory: the content of everything that the workflow made in it.

Each line of `.manifest.jsonl` records one output: the SHA-256 and the stamp of its files. A run
appends lines, so that a kill loses one line at most. The last line of an output counts. A line that
is cut or changed is ignored: a damaged record never has intact weights made again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import files, manifests

NAME = ".manifest.jsonl"

OWN = ""
"""The name of the file in the record of an output that is one file."""


@dataclass(frozen=True)
class RecordedFile:
    """A file of an output.

    `sha256` is None for files that the output's own manifest lists, and for a directory without a
    manifest. `stamp` is size, time of modification in nanoseconds and inode.
    """

    sha256: str | None
    stamp: tuple[int, ...]


Output = dict[str, RecordedFile]
"""The recorded files of an output by their path in it (`OWN` if it is a file itself)."""


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced, without reading it."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def describe(output: Path) -> Output:
    """Hash an output as far as it has no manifest that lists the hashes of its files.

    Raises:
        InputError: a file cannot be read.
        OSError: a file is missing.
    """
    if not output.is_dir():
        return {OWN: RecordedFile(files.hash_file(output), stamp(output))}
    manifest = output / manifests.NAME
    if not manifest.exists():
        return {OWN: RecordedFile(None, ())}
    described = {manifests.NAME: RecordedFile(files.hash_file(manifest), stamp(manifest))}
    for name, size in files.read_object(manifest, sizes=dict).get("sizes", {}).items():
        if size >= manifests.SMALL and not files.leaves_directory(name):
            described[name] = RecordedFile(None, stamp(output / name))
    return described


class ResultsManifest:
    """The recorded outputs of a results directory. Every output is below that directory."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.unreadable_lines = 0
        self._outputs: dict[str, Output] = {}
        self._lines = 0
        try:
            with files.open_regular(results / NAME) as file:
                lines = file.read().decode(errors="replace").splitlines()
        except InputError:
            lines = []
        for line in lines:
            self._read(line)

    def _read(self, line: str) -> None:
        self._lines += 1
        try:
            record = json.loads(line)
            output, parts = record["output"], record["files"]
            if record["check"] != _check(output, parts):
                raise ValueError("changed")
            self._outputs[output] = {
                name: RecordedFile(sha256, tuple(numbers))
                for name, (sha256, numbers) in parts.items()
            }
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            self.unreadable_lines += 1

    def _line(self, name: str) -> str:
        output = self._outputs[name]
        parts = {file: [part.sha256, list(part.stamp)] for file, part in output.items()}
        record = {"output": name, "files": parts, "check": _check(name, parts)}
        return json.dumps(record) + "\n"

    def _name(self, output: Path) -> str:
        return str(output.relative_to(self.results))

    def recorded(self, output: Path) -> Output:
        """Return the recorded files of an output; empty if it is not recorded."""
        return self._outputs.get(self._name(output), {})

    def outputs(self) -> list[Path]:
        """List the recorded outputs."""
        return [self.results / name for name, output in self._outputs.items() if output]

    def update(self, output: Path, described: Output) -> None:
        """Replace the record of an output until `save` writes it. Empty: it is not recorded."""
        self._outputs[self._name(output)] = described
        self._lines = -1

    def append(self, output: Path, described: Output) -> None:
        """Replace the record of an output, and write it at once."""
        name = self._name(output)
        self._outputs[name] = described
        self._lines += 1
        self.results.mkdir(parents=True, exist_ok=True)
        with (self.results / NAME).open("a") as file:
            file.write(self._line(name))

    def save(self) -> None:
        """Write what `update` has changed, and drop lines that are replaced or unreadable."""
        kept = [name for name, output in self._outputs.items() if output]
        if self._lines != len(kept):
            with files.whole_file(self.results / NAME) as partial:
                partial.write_text("".join(map(self._line, kept)))
            self._lines = len(kept)


def _check(output: str, parts: dict[str, Any]) -> str:
    return files.hash_value([output, parts])[:16]
