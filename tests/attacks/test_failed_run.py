"""A failed run names each cell that is missing and why, and leaves no outdated table in place."""

import sys
from pathlib import Path

from conftest import MINUTE, STAND_IN, Checkout, use_stand_ins

PATCH = "results/patches/tiny/base/demo_yes_no/seed1234"
REASON = "patch training diverged: the loss is nan at step 2 of 3; lower patch.learning_rate"
TABLE = [f"results/tables/main.{kind}" for kind in ("csv", "md", "tex")]


def test_missing_cells_and_outdated_tables_are_named(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    python = checkout.directory / ".venvs/train/bin/python"
    diverge = f'case "$*" in *{PATCH}*) echo "error: {REASON}" >&2; exit 1;; esac'
    python.write_text(f'#!/bin/sh\n{diverge}\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    outdated = [checkout.directory / file for file in (*TABLE, "results/scores.csv")]
    for file in outdated:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of an earlier run\n")

    done = checkout.run(
        "--cores", "2", "--keep-going", "--forceall", TABLE[0], "--configfile", MINUTE
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    start = lines.index(
        f"Not scored, because train_patch tiny/base/demo_yes_no/1234 failed ({REASON}):"
    )
    cells = [line for line in lines[start + 1 :] if line.startswith("  tiny/")]
    # A scoring job scores all cells of a version and a task.
    assert "  tiny/base/demo_yes_no: un-patched, patch of base direct seed 1234" in cells
    assert any(line.startswith("  tiny/second/demo_yes_no: ") for line in cells)
    assert all("demo_yes_no" in line for line in cells)
    assert any(line.startswith("Moved to results/outdated, because ") for line in lines)
    for file in outdated:
        assert not file.exists()
        aside = checkout.directory / "results/outdated" / relative(checkout, file)
        assert aside.read_text() == "of an earlier run\n"


def relative(checkout: Checkout, file: Path) -> Path:
    return file.relative_to(checkout.directory / "results")
