"""Clocks that differ delete no result, redo no work and hide no change."""

import os
import sys
import time
from pathlib import Path

import pytest
from conftest import MINUTE, STAND_IN, Checkout, use_stand_ins

PATCH = "results/patches/tiny/base/demo_yes_no/seed1234"
TASK = "results/tasks/demo_yes_no"
AHEAD = 7200


def date(path: Path, ahead: float) -> None:
    carrier = path / ".snakemake_timestamp" if path.is_dir() else path
    os.utime(carrier, times=(time.time() + ahead,) * 2)


def mtime(path: Path) -> float:
    return (path / ".snakemake_timestamp").stat().st_mtime


def test_a_result_that_is_older_than_its_input_is_kept(checkout: Checkout) -> None:
    # The input gets a time in the future while the training runs.
    touch = f"touch -d '+2 hours' {TASK}/.snakemake_timestamp"
    use_stand_ins(checkout)
    interpreter = checkout.directory / ".venvs/train/bin/python"
    interpreter.write_text(f'#!/bin/sh\n{touch}\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    checkout.complete(PATCH, "--configfile", MINUTE)
    assert (checkout.directory / PATCH / "made_by").exists()

    seen = checkout.run("--dry-run", PATCH, "--configfile", MINUTE).stdout
    assert "2 files are dated in the future, by up to 2 h" in seen
    assert "A run will date them to the present." in seen
    assert "rule train_patch:" not in seen

    again = checkout.complete(PATCH, "--configfile", MINUTE)
    assert "They are dated to the present now." in again
    assert "Nothing to be done" in again
    task, patch = (mtime(checkout.directory / path) for path in (TASK, PATCH))
    assert task <= patch <= time.time()
    assert "future" not in checkout.complete(PATCH, "--configfile", MINUTE)


@pytest.mark.parametrize("dated", [(TASK,), (TASK, PATCH)])
def test_a_time_in_the_future_hides_no_change(checkout: Checkout, dated: tuple[str, ...]) -> None:
    use_stand_ins(checkout)
    checkout.complete(PATCH, "--configfile", MINUTE)
    for path in dated:
        date(checkout.directory / path, AHEAD)
    # A newer input is a change, as ever.
    expected = {} if PATCH in dated else {"train_patch": 1}
    assert checkout.counts(PATCH, "--configfile", MINUTE) == expected
    checkout.complete(PATCH, "--configfile", MINUTE)
    assert checkout.counts(PATCH, "--configfile", MINUTE) == {}
    date(checkout.directory / TASK, 0)
    assert checkout.counts(PATCH, "--configfile", MINUTE) == {"train_patch": 1}
