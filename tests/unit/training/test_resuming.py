"""Checkpoints of interrupted trainings: only complete ones are used, by one process at a time."""

import json
import logging
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save

from portllm.training import resuming

ADAPTER = "adapter_model.safetensors"
WEIGHTS = save({"weight": numpy.ones(1000, numpy.float32)})
FILES = {
    ADAPTER: len(WEIGHTS),
    "optimizer.pt": 8000,
    "rng_state.pth": 100,
    "trainer_state.json": 300,
    "global_step4/mp_rank_00_model_states.pt": 50,
}


def write_checkpoint(work: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = work / f"checkpoint-{step}"
    for name, size in FILES.items():
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WEIGHTS if name == ADAPTER else b"x" * size)
    if sealed:
        resuming.seal(checkpoint, step=step, seconds=1.5)
    return checkpoint


def test_the_last_checkpoint_is_used(tmp_path: Path) -> None:
    assert resuming.last_complete(tmp_path) is None
    for step in (5, 10, 100):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert resuming.last_complete(tmp_path) == tmp_path / "checkpoint-100"
    seal = resuming.read_seal(tmp_path / "checkpoint-100")
    assert (seal["step"], seal["seconds"], seal["sizes"]) == (100, 1.5, FILES)


@pytest.mark.parametrize("name", [*FILES, resuming.SEAL])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_reported_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    write_checkpoint(tmp_path, 5)
    checkpoint = write_checkpoint(tmp_path, 10)
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            # In the seal, this is inside of a hash.
            content[-40] ^= 1
            path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert resuming.last_complete(tmp_path) == tmp_path / "checkpoint-5"
    (message,) = caplog.messages
    assert not checkpoint.exists()
    aside = tmp_path / "damaged-checkpoint-10"
    if (name, damage) == (resuming.SEAL, "missing"):
        assert message == f"removing the incomplete checkpoint {checkpoint}"
        assert not aside.exists()
    else:
        assert message.startswith(f"setting the damaged checkpoint aside: {checkpoint}: ")
        assert name in message or "does not match" in message
        assert aside.is_dir()
    # The next start uses the same checkpoint, without a warning.
    caplog.clear()
    assert resuming.last_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert caplog.messages == []


def test_a_seal_without_hashes_is_damage(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 10)
    seal = resuming.read_seal(checkpoint)
    del seal["content"]
    (checkpoint / resuming.SEAL).write_text(json.dumps(seal))
    assert "SHA-256" in str(resuming.damage(checkpoint))
    assert resuming.last_complete(tmp_path) is None


def test_a_checkpoint_of_a_diverged_training_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 5)
    diverged = write_checkpoint(tmp_path, 10)
    (diverged / ADAPTER).write_bytes(save({"weight": numpy.full(1000, numpy.nan, numpy.float32)}))
    resuming.seal(diverged)
    assert resuming.last_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert "checkpoint-10: 1 of 1 tensors are not finite (first: weight)" in caplog.text


def test_an_unfinished_checkpoint_is_not_used(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10, sealed=False)
    assert resuming.last_complete(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def _train(work: Path, record: Path, seconds: float) -> None:
    with resuming.held(work), record.open("a") as file:
        file.write(json.dumps({"event": "begin"}) + "\n")
        file.flush()
        time.sleep(seconds)
        file.write(json.dumps({"event": "end"}) + "\n")
        shutil.rmtree(work)


def test_a_second_process_waits_for_the_same_training(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    record = tmp_path / "record"
    processes = [
        context.Process(target=_train, args=(tmp_path / "work", record, 0.2)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    events = [json.loads(line)["event"] for line in record.read_text().splitlines()]
    assert events == ["begin", "end"] * 4


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    record = tmp_path / "record"
    process = context.Process(target=_train, args=(tmp_path / "work", record, 600))
    process.start()
    while not record.exists() or not record.read_text():
        time.sleep(0.01)
    process.kill()
    process.join()
    with resuming.held(tmp_path / "work"):
        assert (tmp_path / "work").is_dir()
