"""Links from a checkout's results to entries of the shared cache.

For each linked artefact the checkout records which entry it links to, and size, times and inode of
each file when its content was checked. A start of the workflow compares these and reads a file
again only if they differ.
"""

from collections.abc import Iterator
from pathlib import Path

from portllm.errors import InputError
from portllm.snakemake_hooks.cache_entries import CONTENT, Checked, fingerprint
from portllm.storage import files

FOLDER = ".linked"
"""Directory below the results with one record per linked artefact."""


def record_path(artefact: Path, results: Path) -> Path:
    """Return the path of the record of an artefact below `results`."""
    relative = artefact.relative_to(results)
    return results / FOLDER / relative.with_name(f"{relative.name}.json")


def link(artefact: Path, entry: Path, checked: Checked, results: Path) -> None:
    """Replace an artefact by links to the files of an entry, and record the links.

    Args:
        artefact: the directory to create or replace, below `results`.
        entry: the entry.
        checked: its files, as `cache_entries.check` returns them.
        results: the directory of results.

    Raises:
        FileNotFoundError: the entry has vanished. The artefact is as it was.
    """
    with files.whole_directory(artefact) as partial:
        for name in checked:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).symlink_to(entry / CONTENT / name)
            (partial / name).stat()
    recorded = {
        name: {**part, "fingerprint": _without_link_count(part["fingerprint"], artefact / name)}
        for name, part in checked.items()
    }
    # A job that is killed before this is run again, so there are no links without a record.
    files.write_json(record_path(artefact, results), {"entry": str(entry), "files": recorded})


def _without_link_count(checked: list[int], file: Path) -> list[int]:
    """Return a file's present fingerprint, if no more than its number of hard links has changed.

    Removing the artefact that an entry was made of changes that number, and so the last time in
    the fingerprint.
    """
    try:
        present = fingerprint(file.stat())
    except OSError:
        return checked  # it has vanished since, which the next start will notice
    return present if present[:-1] == checked[:-1] else checked


def damaged(results: Path, *, update: bool) -> Iterator[tuple[Path, str]]:
    """Yield the artefacts whose entry has changed or vanished since they were linked, and how.

    Args:
        results: the directory of results.
        update: whether to record files that have been read again, and to forget artefacts that are
            no longer linked. False for a dry run.
    """
    folder = results / FOLDER
    for path in sorted(folder.rglob("*.json")):
        relative = path.relative_to(folder)
        artefact = results / relative.with_name(relative.name.removesuffix(".json"))
        try:
            problem = _damage(artefact, path, update)
        except (InputError, AttributeError, KeyError, TypeError):
            problem = f"{path} does not record what it is linked to"
        if problem is not None:
            yield artefact, problem


def _damage(artefact: Path, path: Path, update: bool) -> str | None:
    record = files.read_json(path)
    content, recorded = Path(record["entry"]) / CONTENT, record["files"]
    is_linked = any((artefact / name).is_symlink() for name in recorded)
    if not is_linked:
        # It has been removed, or made again without the cache.
        if update:
            path.unlink()
        return None
    is_read = False
    for name, part in recorded.items():
        try:
            target = (artefact / name).readlink()
            status = (artefact / name).stat()
        except OSError:
            return f"{name}, a link to the shared cache, is missing or leads nowhere"
        if target != content / name:
            return f"{name} is no longer a link to the shared cache"
        if status.st_size != part["size"]:
            return f"{name} has {status.st_size:,} bytes, expected {part['size']:,}"
        if fingerprint(status) != part["fingerprint"]:
            if files.hash_file(artefact / name) != part["sha256"]:
                return f"the content of {name} has changed in the shared cache"
            part["fingerprint"], is_read = fingerprint(status), True
    if is_read and update:
        files.write_json(path, record)
    return None
