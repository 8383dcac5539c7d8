"""Lock files that were removed, or replaced by something else, while a run holds or opens them."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import PROJECT

VENVS = PROJECT / ".venvs"
KINDS = ("symbolic link", "dangling link", "hard link", "FIFO", "directory", "socket")
HOLD_RUN = """
from portllm.snakemake_hooks import run_guard
hold = run_guard.hold
"""
HOLD_TRAINING = """
from portllm.training import resuming
def hold(work):
    with resuming.held(work):
        pass
"""
HOLD_AND_WAIT = """
import sys, time
from pathlib import Path
held = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""
HOLD_EACH = """
import sys
from pathlib import Path
from portllm.errors import InputError
for work in map(Path, sys.argv[1:]):
    try:
        hold(work)
        print(work, "held")
    except InputError as error:
        print(error)
"""


def put(kind: str, path: Path, precious: Path) -> None:
    """Put something where a lock file is opened."""
    match kind:
        case "symbolic link":
            path.symlink_to(precious)
        case "dangling link":
            path.symlink_to(precious.with_name("new"))
        case "hard link":
            path.hardlink_to(precious)
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))


def messages(environment: str, code: str, *directories: Path) -> list[str]:
    """Hold each directory in one process; return a line for each."""
    done = subprocess.run(
        [VENVS / environment / "bin" / "python", "-c", code + HOLD_EACH, *directories],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "code", "name"),
    [("workflow", HOLD_RUN, ".run.lock"), ("test", HOLD_TRAINING, "in_use")],
)
def test_no_other_file_is_locked_or_overwritten(
    tmp_path: Path, environment: str, code: str, name: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    locks = [tmp_path / kind / name for kind in KINDS]
    for kind, lock in zip(KINDS, locks, strict=True):
        lock.parent.mkdir()
        put(kind, lock, precious)
    lines = messages(environment, code, *(lock.parent for lock in locks))
    for lock, line in zip(locks, lines, strict=True):
        assert line.startswith(f"{lock}: not ")
    assert precious.read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_a_removed_lock_file_lets_no_second_run_in(tmp_path: Path) -> None:
    work = tmp_path / "results"
    first = subprocess.Popen(
        [VENVS / "workflow" / "bin" / "python", "-c", HOLD_RUN + HOLD_AND_WAIT, work],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")},
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        (work / ".run.lock").unlink()
        (line,) = messages("workflow", HOLD_RUN, work)
        assert f"another Snakemake run is using {work}" in line
        first.kill()
    assert messages("workflow", HOLD_RUN, work) == [f"{work} held"]
