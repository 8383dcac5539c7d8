"""Finished work that several checkouts share, through Snakemake's between-workflow cache.

Snakemake's key of an output covers parameters, inputs and pinned environments, and all of them of
everything upstream, but not the code of our programs, nor what they compute on. Entries are
therefore kept in a folder that is named by the code that decides them and by whether there are
devices: `auto` precision is bfloat16 on them and float32 elsewhere.
"""

import ast
import hashlib
import os
import shutil
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from portllm.errors import InputError

VARIABLE = "SNAKEMAKE_OUTPUT_CACHE"
# The programs of the shared outputs and of all that is upstream of them.
PROGRAMS = (
    "evolve.py",
    "fetch_model.py",
    "make_corpus.py",
    "make_task_data.py",
    "pretrain.py",
    "train_patch.py",
)


def _imported(file: Path, library: Path) -> set[Path]:
    """Files of the library that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    candidates = (library.parent / (module.replace(".", "/") + ".py") for module in modules)
    return {path for path in candidates if path.is_relative_to(library) and path.exists()}


def deciding_files(scripts: Path, programs: Iterable[str] = PROGRAMS) -> list[Path]:
    """The programs and every file of the library that they import, directly or not."""
    found: set[Path] = set()
    waiting = {scripts / program for program in programs}
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _imported(file, scripts / "portllm") - found
    return sorted(found)


def code_key(scripts: Path) -> str:
    """Hash of the code that decides shared outputs."""
    digest = hashlib.sha256()
    for file in deciding_files(scripts):
        digest.update(str(file.relative_to(scripts)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def prepare(
    environment: MutableMapping[str, str], scripts: Path, *, with_devices: bool = False
) -> None:
    """Point Snakemake's cache at the folder of this code and kind of machine, and make it.

    Raises InputError where the environment names no directory, or one that cannot be written.
    """
    place = environment.get(VARIABLE)
    if not place:
        raise InputError(f"--cache needs {VARIABLE}: found nothing, expected a directory to share")
    key = f"code-{code_key(scripts)}-"
    # Snakemake may start others of itself, which inherit the variable.
    inherited = Path(place).name.startswith(key)
    folder = Path(place) if inherited else Path(place, key + ("gpu" if with_devices else "cpu"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{VARIABLE}: {folder} cannot be made: {error.strerror}") from None
    environment[VARIABLE] = str(folder)


def entry_of(artefact: Path, cache: Path) -> Path | None:
    """The cache's entry that an artefact is linked from; None where it is the checkout's own."""
    # The checkout that made it links the whole directory, others each file in it.
    for path in (artefact, *(artefact.iterdir() if artefact.is_dir() else ())):
        if path.is_symlink() and path.resolve().is_relative_to(cache.resolve()):
            return cache / path.resolve().relative_to(cache.resolve()).parts[0]
    return None


def discard(artefact: Path, cache: Path) -> Path | None:
    """Take the entry of a damaged artefact out of the cache, which would else hand it out again.

    Returns the entry; None where the artefact is not from the cache. Raises InputError where it
    cannot be removed.
    """
    entry = entry_of(artefact, cache)
    if entry is None:
        return None
    aside = entry.with_name(f".{entry.name}.damaged-{os.getpid()}")
    try:
        # First out of sight: another checkout must not find half of it.
        entry.rename(aside)
        shutil.rmtree(aside)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{entry} is damaged and cannot be removed: {error.strerror}") from None
    return entry
