"""A run handles SLURM jobs that a killed run left behind."""

from pathlib import Path

import pytest

from portllm.errors import InputError
from portllm.snakemake_hooks import slurm


def line(number: int, state: str, name: str, wildcards: str) -> str:
    return f"{number}|{state}|1:02|{name}_6f0c-11|rule_patch_wildcards_{wildcards}\n"


def test_only_jobs_on_the_same_results_are_listed(tmp_path: Path) -> None:
    here, there = (slurm.job_prefix("portllm", tmp_path / name) for name in ("here", "there"))
    listing = (
        line(7, "RUNNING", here, "base_with|bar")
        + line(8, "PENDING", there, "base")
        + "9|RUNNING|0:00|bash|\n"
        + line(10, "PENDING", slurm.job_prefix("", tmp_path / "here"), "other_prefix")
    )
    jobs = slurm.parse(listing, tmp_path / "here")
    assert [job.identifier for job in jobs] == ["7", "10"]
    assert [job.is_waiting for job in jobs] == [False, True]
    assert jobs[0].description == "patch_wildcards_base_with|bar (job 7, 1:02)"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that replaces PATH."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_running_jobs_are_awaited_and_pending_jobs_cancelled(tmp_path: Path, squeue: Path) -> None:
    mine = slurm.job_prefix("portllm", tmp_path)
    listings = [
        line(1, "RUNNING", mine, "a") + line(2, "PENDING", mine, "b"),
        line(1, "RUNNING", mine, "a"),
        line(1, "COMPLETING", mine, "a"),
        "",
    ]
    current = tmp_path / "listing"
    command(squeue, "squeue", f'while IFS= read -r row; do echo "$row"; done <{current}')
    command(squeue, "scancel", f'echo "$@" >>{tmp_path / "cancelled"}')
    output: list[str] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        current.write_text(listings[len(pauses)])

    current.write_text(listings[0])
    slurm.finish_earlier_jobs(tmp_path, output.append, pause)
    assert (tmp_path / "cancelled").read_text() == "--state=PENDING 2\n"
    assert [text.partition(":")[0] for text in output] == [
        "Cancelling pending jobs of an earlier run",
        "Waiting for running jobs of an earlier run",
    ]
    assert pauses == sorted(pauses)


def test_an_unresponsive_controller_is_an_error(tmp_path: Path, squeue: Path) -> None:
    command(squeue, "squeue", "echo slurm_load_jobs error: no contact >&2; exit 1")
    output: list[str] = []
    with pytest.raises(InputError, match="SLURM does not answer squeue"):
        slurm.finish_earlier_jobs(tmp_path, output.append, lambda seconds: None)
    assert [text.partition(" (")[0] for text in output] == ["SLURM does not answer"]


def test_slurm_that_is_not_installed_is_an_error(tmp_path: Path, squeue: Path) -> None:
    with pytest.raises(InputError, match="squeue: command not found; run on a login node"):
        slurm.finish_earlier_jobs(tmp_path, print)
