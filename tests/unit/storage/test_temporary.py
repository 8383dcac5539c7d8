"""Temporary directories go when their owner and all that use them have ended, not before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.storage import temporary

OWN_AND_DIE = """
import os, pathlib, signal, sys
from portllm.storage import temporary
directory, also = map(pathlib.Path, sys.argv[1:])
temporary.own(directory, [also])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_directories_of_a_killed_process_are_removed_and_no_others(tmp_path: Path) -> None:
    names = ("snakemake-dead", "snakemake-live", "snakemake-unmarked", "runtime-cache", "other")
    dead, live, unmarked, runtime_cache, other = (tmp_path / name for name in names)
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    subprocess.run(
        [sys.executable, "-c", OWN_AND_DIE, dead, runtime_cache],
        cwd=PROJECT / "workflow_scripts",
        check=False,
    )
    temporary.own(live, [other])
    (tmp_path / "snakemake-link").symlink_to(dead)
    assert set(temporary.sweep(tmp_path, "snakemake")) == {dead, runtime_cache}
    assert not dead.exists()
    assert not runtime_cache.exists()
    assert all((directory / "file").exists() for directory in (live, unmarked, other))


def test_directories_that_were_never_locked_are_removed_when_they_are_old(tmp_path: Path) -> None:
    for name in ("snakemake-old", "x-old", "x-new"):
        (tmp_path / name).mkdir()
    for name in ("snakemake-old", "x-old"):
        os.utime(tmp_path / name, (0, 0))
    # Snakemake's are not ours to judge.
    assert temporary.sweep(tmp_path, "x-", "snakemake") == [tmp_path / "x-old"]


def test_an_owned_directory_ends_with_its_block(tmp_path: Path) -> None:
    def use() -> None:
        with temporary.owned_directory(tmp_path, "x-") as (directory, _):
            assert temporary.sweep(tmp_path, "x-") == []
            assert directory.stat().st_mode & 0o777 == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert list(tmp_path.iterdir()) == []
