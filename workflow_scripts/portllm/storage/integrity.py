"""Find damaged results: truncated, emptied, or with files missing.

The workflow writes its outputs atomically, so damage happens later: a full disk, a lost node, an
accidental edit. By default only sizes and the last bytes of files are checked, which is fast enough
for every start of the workflow.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import files, manifests

NOT_ARTEFACTS = frozenset({"checkpoints", "outdated", "prepared"})
"""Directories below the results that hold work in progress or what was replaced."""
# The last bytes of a complete file, by file name extension.
ENDINGS = {
    **dict.fromkeys((".csv", ".md", ".tex", ".svg", ".jsonl"), b"\n"),
    ".png": b"IEND\xaeB`\x82",
}


def _damage_of_json(path: Path) -> str | None:
    try:
        content = files.read_json(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    expected = content.get("sizes", {}) if isinstance(content, dict) else {}
    return files.size_mismatch(path.parent, expected)


def damage(artefact: Path, *, contents: bool = False) -> str | None:
    """Describe what is wrong with an artefact; None if it is intact.

    Args:
        artefact: a directory with a manifest, or a file.
        contents: also compare the SHA-256 of every file that a manifest lists.
    """
    if artefact.is_dir():
        return damage(artefact / manifests.NAME, contents=contents)
    if artefact.suffix == ".json":
        problem = _damage_of_json(artefact)
        return problem or (_changed_content(artefact) if contents else None)
    ending = ENDINGS.get(artefact.suffix, b"")
    with artefact.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(ending)))
        return None if file.read() == ending else "truncated"


def _changed_content(manifest: Path) -> str | None:
    content = files.read_json(manifest)
    hashes = content.get("content", {}) if isinstance(content, dict) else {}
    return files.hash_mismatch(manifest.parent, hashes)


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


def damaged(results: Path, *, contents: bool = False) -> Iterator[tuple[Path, str]]:
    """Yield every damaged artefact below `results` with a description of the damage."""
    for artefact in artefacts(results):
        problem = damage(artefact, contents=contents)
        if problem is not None:
            yield artefact, problem
