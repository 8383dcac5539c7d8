"""Results that lie there damaged: cut off, emptied, or with files missing.

The workflow's own programs let outputs appear whole or not at all, so this is what a full disk, a
lost node or a slip of the hand has done since. Quick enough for every start: sizes and ends of
files are looked at, not their contents.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import files, manifests

NOT_ARTEFACTS = frozenset({"checkpoints", "prepared"})
"""Directories below the results that hold work in progress."""
# How a file that was written to its end does end.
ENDS = {
    **dict.fromkeys((".csv", ".md", ".tex", ".svg", ".jsonl"), b"\n"),
    ".png": b"IEND\xaeB`\x82",
}


def _damage_of_json(path: Path) -> str | None:
    try:
        content = files.read_json(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    expected = content.get("sizes", {}) if isinstance(content, dict) else {}
    return files.misfit(path.parent, expected)


def damage(artefact: Path, *, contents: bool = False) -> str | None:
    """What is wrong with an artefact, a directory with a manifest or a file; None if nothing.

    With `contents`, every byte that a manifest vouches for is read and compared too.
    """
    if artefact.is_dir():
        return damage(artefact / manifests.NAME, contents=contents)
    if artefact.suffix == ".json":
        problem = _damage_of_json(artefact)
        return problem or (_changed_content(artefact) if contents else None)
    end = ENDS.get(artefact.suffix, b"")
    with artefact.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(end)))
        return None if file.read() == end else "cut off"


def _changed_content(described: Path) -> str | None:
    content = files.read_json(described)
    hashes = content.get("content", {}) if isinstance(content, dict) else {}
    for name, expected in hashes.items():
        if files.hash_file(described.parent / name) != expected:
            return f"{name} is not what was written"
    return None


def found(results: Path) -> Iterator[Path]:
    """Every artefact below `results`: directories with a manifest, and files outside of them."""
    for folder, subfolders, names in os.walk(results):
        if manifests.NAME in names:
            subfolders.clear()
            yield Path(folder)
            continue
        # What is shared with other checkouts is a link to a directory, which is not walked into.
        links = (Path(folder, name) for name in subfolders if Path(folder, name).is_symlink())
        yield from (link for link in links if (link / manifests.NAME).exists())
        subfolders[:] = [
            name for name in subfolders if name not in NOT_ARTEFACTS and not name.startswith(".")
        ]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".json" or path.suffix in ENDS:
                yield path


def damaged(results: Path, *, contents: bool = False) -> Iterator[tuple[Path, str]]:
    """Artefacts below `results` that are damaged, each with what is wrong."""
    for artefact in found(results):
        problem = damage(artefact, contents=contents)
        if problem is not None:
            yield artefact, problem
