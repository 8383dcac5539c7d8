"""Files from the future are dated to the present, in the same order."""

import os
import time
from pathlib import Path

import pytest

from portllm.snakemake_hooks import clock_skew


def write(directory: Path, ahead: dict[str, float]) -> dict[str, float]:
    """Write files that are some seconds ahead of the clock; return their times by path."""
    times = {}
    for name, seconds in ahead.items():
        path = directory / name
        path.touch()
        os.utime(path, times=(time.time() + seconds,) * 2)
        times[str(path)] = path.stat().st_mtime
    return times


def test_files_from_the_future_keep_their_order(tmp_path: Path) -> None:
    times = write(tmp_path, {"old": -60, "late": 7300, "soon": 5, "later": 7400, "as_late": 7300})
    os.utime(tmp_path / "as_late", times=(times[str(tmp_path / "late")],) * 2)
    times[str(tmp_path / "as_late")] = times[str(tmp_path / "late")]
    message = clock_skew.correct_future_times(times, may_correct=True)
    assert message is not None
    assert message.startswith(
        f"4 files are dated in the future, by up to 2 h 03 min ({tmp_path / 'later'})"
    )
    old, soon, late, as_late, later = (
        (tmp_path / name).stat().st_mtime for name in ("old", "soon", "late", "as_late", "later")
    )
    assert old == times[str(tmp_path / "old")]
    assert old < soon < late == as_late < later < time.time() + 1


@pytest.mark.parametrize("ahead", [-7200, 0, 5])
def test_small_differences_are_not_reported(tmp_path: Path, ahead: float) -> None:
    times = write(tmp_path, {"file": ahead})
    assert clock_skew.correct_future_times(times, may_correct=True) is None
    assert (tmp_path / "file").stat().st_mtime == times[str(tmp_path / "file")]


def test_nothing_is_dated_if_a_file_belongs_to_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = write(tmp_path, {"mine": 7300, "theirs": 7200})
    monkeypatch.setattr(clock_skew, "is_own", lambda path: path.name == "mine")
    message = clock_skew.correct_future_times(times, may_correct=True)
    assert message is not None
    assert "`touch` the files" in message
    assert {path: Path(path).stat().st_mtime for path in times} == times


def test_another_clock_of_a_file_system_is_reported(tmp_path: Path) -> None:
    assert clock_skew.clock_message(tmp_path, time.time() + 5) is None
    for ahead, direction in ((7200.0, "2 h 00 min ahead of"), (-90.0, "90 s behind")):
        message = clock_skew.clock_message(tmp_path, time.time() + ahead)
        assert message is not None
        assert f"The clock of the file system of {tmp_path} is {direction} this" in message
