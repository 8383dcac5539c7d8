"""Share finished models and patches between checkouts through Snakemake's output cache.

Snakemake's cache key covers the parameters, inputs and pinned environments of a job and of
everything upstream, but neither our code nor the device. Entries therefore go to a subfolder named
after a hash of the code that decides them and "gpu" or "cpu" (`auto` precision is bfloat16 on a GPU
and float32 on a CPU).
"""

import os
import stat
from collections.abc import MutableMapping
from pathlib import Path

from portllm.errors import InputError
from portllm.snakemake_hooks import cache_entries
from portllm.snakemake_hooks.program_code import ProgramCode
from portllm.storage import temporary

VARIABLE = "SNAKEMAKE_OUTPUT_CACHE"
# The programs that make shared outputs and everything upstream of them.
PROGRAMS = (
    "evolve.py",
    "fetch_model.py",
    "make_corpus.py",
    "make_task_data.py",
    "pretrain.py",
    "train_patch.py",
)


# Axolotl loads its plugin by name, so no import statement leads to it.
PLUGIN = "portllm/training/axolotl_plugin.py"


def code_key(scripts: Path) -> str:
    """Hash the code that decides shared outputs."""
    return ProgramCode(scripts).key(*PROGRAMS, PLUGIN)


def prepare(
    environment: MutableMapping[str, str], scripts: Path, *, with_devices: bool = False
) -> None:
    """Point Snakemake's cache at the subfolder of this code and device type; create it.

    A cache that is shared with a group has a subfolder of its own.

    Args:
        environment: the process environment, whose cache variable is changed.
        scripts: the directory that holds the programs and the package `portllm`.
        with_devices: whether this machine has GPUs.

    Raises:
        InputError: the variable is not set, or the folder cannot be created or is not private.
    """
    cache = environment.get(VARIABLE)
    if not cache:
        raise InputError(f"--cache needs {VARIABLE}: found nothing, expected a directory to share")
    access = cache_entries.access(environment)
    key = f"entries-{code_key(scripts)}-"
    # A Snakemake started by this one (for a job) inherits the extended path.
    inherited = Path(cache).name.startswith(key)
    name = key + ("gpu" if with_devices else "cpu")
    if access.group is not None:
        name += f"-{access.group}"
    folder = Path(cache) if inherited else Path(cache, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _protect(folder, access)
    except OSError as error:
        raise InputError(f"{VARIABLE}: cannot create {folder}: {error.strerror}") from None
    environment[VARIABLE] = str(folder)
    temporary.sweep(folder, cache_entries.STAGING)


def _protect(folder: Path, access: cache_entries.Access) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{VARIABLE}: {folder} is a link, expected a directory")
    if status.st_uid == os.getuid():
        access.apply(folder, access.folder_mode)
    elif not access.trusts(status):
        raise InputError(
            f"{VARIABLE}: {folder} belongs to user {cache_entries.owner_of(status)}. Use a "
            f"directory of your own, or set {cache_entries.GROUP} to share with a group"
        )
