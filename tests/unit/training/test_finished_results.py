"""A finished training's result is kept until Snakemake has accepted it."""

import logging
import os
from pathlib import Path

import pytest

from portllm.jobs.supervision import SNAKEMAKE_PID
from portllm.storage import files, manifests
from portllm.training import finished_results, resuming

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a training that Snakemake has started, with a checkpoint."""
    monkeypatch.setenv(SNAKEMAKE_PID, str(os.getpid()))
    work = tmp_path / "checkpoints" / "train_patch" / "key"
    (work / "checkpoint-200").mkdir(parents=True)
    (work / "axolotl.yaml").touch()
    return work


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The result of the training."""
    output = tmp_path / "patch"
    write(output, b"trained")
    return output


def write(output: Path, weights: bytes) -> None:
    with files.whole_directory(output) as directory:
        (directory / WEIGHTS).write_bytes(weights)
        record = {"sizes": files.sizes(directory), "content": files.hash_files(directory)}
        files.write_json(directory / manifests.NAME, record)


def remove(output: Path) -> None:
    """Remove an output as Snakemake does when it does not accept it."""
    for path in output.iterdir():
        path.unlink()
    output.rmdir()


def test_a_result_is_restored_if_it_was_not_accepted(work: Path, output: Path) -> None:
    assert not finished_results.restore(work, output)
    (output / ".snakemake_timestamp").touch()
    inode = (output / WEIGHTS).stat().st_ino
    with resuming.held(work):
        finished_results.keep(work, output)
    assert {path.name for path in work.iterdir()} == {"result", "result.json", resuming.LOCK}
    remove(output)
    with resuming.held(work):
        # The training of another output with the same settings is not done by this one's result.
        assert not finished_results.restore(work, output.with_name("other"))
        assert finished_results.restore(work, output)
    assert sorted(path.name for path in output.iterdir()) == [WEIGHTS, manifests.NAME]
    assert (output / WEIGHTS).stat().st_ino == inode, "it takes no space"


def test_a_damaged_result_is_not_restored(
    work: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished_results.keep(work, output)
    (output / WEIGHTS).write_bytes(b"tramed!")
    remove(output)
    with caplog.at_level(logging.WARNING):
        assert not finished_results.restore(work, output)
    assert f"the content of {WEIGHTS} does not match its manifest" in caplog.text
    assert not output.exists()


def test_only_accepted_results_are_discarded(work: Path, output: Path) -> None:
    finished_results.keep(work, output)
    assert list(finished_results.kept(work.parents[1])) == [(work, output)]
    with resuming.held(work):
        finished_results.discard(work)
        assert work.exists(), "a process uses it"
    finished_results.discard(work)
    assert not work.exists()
    assert list(finished_results.kept(work.parents[1])) == []


def test_checkpoints_stay_where_files_cannot_be_linked(
    work: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    finished_results.keep(work, output)
    assert (work / "checkpoint-200").exists()
    assert not finished_results.restore(work, output)
    assert list(finished_results.kept(work.parents[1])) == [(work, output)]


def test_a_program_that_was_started_by_hand_keeps_nothing(
    work: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SNAKEMAKE_PID)
    finished_results.keep(work, output)
    assert not work.exists()
