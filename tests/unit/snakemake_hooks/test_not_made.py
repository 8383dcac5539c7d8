"""Why a job failed, from its log, and outdated files that were made again."""

from pathlib import Path

import pytest

from portllm.snakemake_hooks import not_made


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("step 1\nerror: lower learning_rate\n", "lower learning_rate"),
        (
            "error: an earlier attempt\n12:00:01 ERROR run_job: score.py was killed (signal 9)\n",
            "score.py was killed (signal 9)",
        ),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n\n", "KeyError: 'a'"),
        ("x" * not_made.LAST_BYTES + "\nerror: at the end\n", "at the end"),
        ("", "it left no log"),
        (None, "it left no log"),
    ],
)
def test_the_reason_is_the_last_error(tmp_path: Path, log: str | None, reason: str) -> None:
    if log is not None:
        (tmp_path / "job.log").write_text(log)
    assert not_made.reason([tmp_path / "job.log"]) == reason


def test_outdated_files_are_removed_when_they_are_made_again(tmp_path: Path) -> None:
    for file in ("outdated/tables/main.md", "outdated/report.html", "tables/main.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    not_made.remove_renewed(tmp_path)
    assert not (tmp_path / "outdated/tables").exists()
    assert (tmp_path / "outdated/report.html").exists()
    (tmp_path / "report.html").touch()
    not_made.remove_renewed(tmp_path)
    assert not (tmp_path / "outdated").exists()
    assert (tmp_path / "tables/main.md").exists()
