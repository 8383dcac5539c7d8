"""The storms of tests/attacks count their trials, and fail if one breaks something."""

import subprocess
import sys
from pathlib import Path

from conftest import PROJECT

TESTS = """
import pytest

def test_storm(storm):
    for trial in storm.trials("fuzz", 5):
        with trial:
            trial.describe("a number")
            broken = trial.random.random() < BOUND
            trial.output("Traceback (most recent call last)" if broken else "")

@pytest.mark.parametrize("holds", [True, True, HOLDS])
def test_case(holds):
    assert holds

def test_skipped():
    pytest.skip("needs something")
"""


def run(tmp_path: Path, bound: float, *, holds: bool, options: tuple[str, ...] = ()) -> str:
    """Run the tests above as a file of tests/attacks; return pytest's output and exit status."""
    folder = tmp_path / "attacks"
    folder.mkdir()
    (folder / "storm.py").write_bytes((PROJECT / "tests/attacks/storm.py").read_bytes())
    (tmp_path / "conftest.py").write_text("from attacks.storm import *\n")
    tests = TESTS.replace("BOUND", str(bound)).replace("HOLDS", str(holds))
    (folder / "test_attacks.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "-c"]
    done = subprocess.run(
        [*command, "/dev/null", "-n", "2", *options, "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.stdout}\nstatus {done.returncode}"


def table(output: str) -> list[list[str]]:
    """The rows of the summary."""
    lines = output.partition("tracebacks\n")[2].splitlines()
    return [line.split() for line in lines if line.startswith("  ")]


def test_attacks_that_hold_are_counted(tmp_path: Path) -> None:
    output = run(tmp_path, 0, holds=True, options=("--attack-rounds", "3", "--attack-seed", "7"))
    assert output.endswith("status 0"), output
    assert "attacks (seed 7)" in output
    assert table(output) == [["case", "3", "3", "0", "0"], ["fuzz", "15", "15", "0", "0"]]


def test_attacks_that_break_something_fail(tmp_path: Path) -> None:
    output = run(tmp_path, 2, holds=False)
    assert output.endswith("status 1"), output
    assert table(output) == [["case", "3", "2", "1", "0"], ["fuzz", "5", "0", "5", "5"]]
    assert "5 attacks broke something" in output
    assert (
        "trial 0 of test_attacks.py::test_storm, seed 11 (a number): AssertionError: a trace"
        in output
    )
