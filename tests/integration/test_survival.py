"""Real trainings that are killed or stopped resume without losing or repeating work."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Checkout, copy_state, make_checkout, wait_for

from portllm.storage import files
from portllm.training import resuming

pytestmark = pytest.mark.slow

STUDY = "tests/studies/minute.yaml"
CONFIG = ("--configfile", STUDY)
PATCH = "results/patches/tiny/base/demo_yes_no/seed1234"
VERSION = "results/models/tiny/first"
STEPS = 500
Start = Callable[[Checkout, str], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with all inputs of trainings that are long enough to be interrupted often."""
    checkout = make_checkout(tmp_path_factory.mktemp("survival") / "checkout")
    config = checkout.read(STUDY)
    config["patch"].update(max_steps=STEPS, checkpoint_steps=100)
    overrides = {"max_steps": 160, "save_steps": 40, "save_strategy": "steps", "lora_dropout": 0.1}
    config["evolutions"]["first"]["overrides"].update(overrides)
    checkout.write(STUDY, config)
    checkout.complete(
        "results/models/tiny/base",
        "results/tasks/demo_yes_no",
        "results/corpora/tales.jsonl",
        *CONFIG,
    )
    return checkout


@pytest.fixture
def start() -> Iterator[Start]:
    """Returns a function that starts a run of a target; kills leftovers at the end."""
    runs: list[subprocess.Popen[str]] = []

    def begin(checkout: Checkout, target: str) -> subprocess.Popen[str]:
        # Remove the log of the previous run, so that its lines are not mistaken for this run's.
        for log in (checkout.directory / "logs").rglob("*.log"):
            log.unlink()
        runs.append(checkout.start("run.log", target, *CONFIG))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()
        run.wait()


def processes(checkout: Checkout, program: str) -> list[psutil.Process]:
    """List the processes of a program in a checkout, without its wrappers."""
    result = []
    for process in psutil.process_iter():
        try:
            called = [Path(word).name for word in process.cmdline()[:2]]
            if program in called and process.cwd() == str(checkout.directory):
                result.append(process)
        except psutil.Error:
            continue
    return result


def checkpoint(checkout: Checkout, stage: str, step: int) -> Path | None:
    """Return the last complete checkpoint of a training if it is at or after a step."""
    seals = (checkout.directory / "results/checkpoints" / stage).rglob(resuming.SEAL)
    result = [seal.parent for seal in seals if step_of(seal.parent) >= step]
    return max(result, default=None, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def said(checkout: Checkout, log: str) -> str:
    path = checkout.directory / "logs" / log
    return path.read_text() if path.exists() else ""


def stopped_after(text: str) -> int:
    """Return the step after which a training reports that it was stopped."""
    return int(text.rpartition("stopped after step ")[2].split()[0])


def test_an_interrupted_patch_training_gives_the_same_patch(
    ready: Checkout, tmp_path: Path, start: Start
) -> None:
    whole = copy_state(ready, tmp_path / "whole")
    whole.complete(PATCH, *CONFIG)
    broken = copy_state(ready, tmp_path / "broken")
    log = "train_patch/tiny/base/demo_yes_no/seed1234.log"

    # The job is killed.
    run = start(broken, PATCH)
    wait_for(lambda: checkpoint(broken, "train_patch", 100))
    (training,) = processes(broken, "train_patch.py")
    training.kill()
    assert run.wait() != 0
    assert not (broken.directory / PATCH).exists()

    # Snakemake and the job are killed, and a checkpoint is damaged.
    run = start(broken, PATCH)
    wait_for(
        lambda: "resumed after step" in said(broken, log) and checkpoint(broken, "train_patch", 200)
    )
    run.kill()
    run.wait()
    for training in processes(broken, "train_patch.py"):
        training.kill()
        training.wait()
    damaged = checkpoint(broken, "train_patch", 200)
    assert damaged is not None
    os.truncate(damaged / "optimizer.pt", 100)

    # Snakemake alone is killed: the job ends by itself.
    run = start(broken, PATCH)
    wait_for(lambda: "resumed after step" in said(broken, log))
    run.kill()
    run.wait()
    wait_for(lambda: not processes(broken, "train_patch.py"), seconds=60)
    text = said(broken, log)
    assert f"{damaged.name}: optimizer.pt has 100 bytes" in text
    assert "Snakemake has ended; stopping the command" in text
    orphaned = stopped_after(text)
    assert 100 < orphaned < STEPS
    assert checkpoint(broken, "train_patch", orphaned)
    assert not (broken.directory / PATCH).exists()

    # Snakemake gets a signal to stop.
    run = start(broken, PATCH)
    wait_for(lambda: "resumed after step" in said(broken, log))
    run.terminate()
    assert run.wait() > 0
    assert processes(broken, "train_patch.py") == []
    text = said(broken, log)
    assert f"resumed after step {orphaned} of {STEPS}" in text
    step = stopped_after(text)
    assert orphaned < step < STEPS
    assert checkpoint(broken, "train_patch", step)

    broken.complete(PATCH, *CONFIG)
    before, after = (
        files.read_json(checkout.directory / PATCH / "manifest.json")
        for checkout in (whole, broken)
    )
    assert before["training"]["resumed_from_step"] == 0
    assert after["training"]["resumed_from_step"] == step
    assert after["training"]["steps"] == before["training"]["steps"] == STEPS
    assert after["content_hash"] == before["content_hash"], "the weights are the same in every bit"
    assert after["cost"]["wall_seconds"] > after["training"]["earlier_seconds"] > 0
    left = (broken.directory / "results/checkpoints").rglob("*")
    assert [path for path in left if path.is_file()] == []


def test_an_interrupted_evolution_gives_the_same_version(
    ready: Checkout, tmp_path: Path, start: Start
) -> None:
    whole = copy_state(ready, tmp_path / "whole")
    whole.complete(VERSION, *CONFIG)
    broken = copy_state(ready, tmp_path / "broken")
    log = "evolve/tiny/first.log"

    # The job is killed, but not the Axolotl that it has started: that ends by itself.
    run = start(broken, VERSION)
    wait_for(lambda: checkpoint(broken, "evolve", 40))
    (training,) = processes(broken, "evolve.py")
    training.kill()
    assert run.wait() != 0
    assert not (broken.directory / VERSION).exists()
    wait_for(lambda: not processes(broken, "axolotl"))
    left = checkpoint(broken, "evolve", 40)
    assert left is not None
    first = step_of(left)

    # Ctrl-C.
    run = start(broken, VERSION)
    wait_for(lambda: checkpoint(broken, "evolve", first + 1))
    run.send_signal(signal.SIGINT)
    assert run.wait() > 0
    assert processes(broken, "evolve.py") + processes(broken, "axolotl") == []
    second = stopped_after(said(broken, log))
    assert first < second < 160

    broken.complete(VERSION, *CONFIG)
    before, after = (
        files.read_json(checkout.directory / VERSION / "manifest.json")
        for checkout in (whole, broken)
    )
    assert before["training"]["resumed_from_step"] == 0
    assert after["training"]["resumed_from_step"] == second
    assert after["training"]["steps"] == before["training"]["steps"] == 160
    assert after["content_hash"] == before["content_hash"], "the weights are the same in every bit"


def test_truncated_results_are_rebuilt(ready: Checkout, tmp_path: Path) -> None:
    study = copy_state(ready, tmp_path / "study")
    base = study.directory / "results/models/tiny/base"
    weights = base / "model.safetensors"
    before = weights.read_bytes()
    os.truncate(weights, len(before) // 2)
    text = study.complete("results/models/tiny/base", *CONFIG)
    assert "results/models/tiny/base is damaged (model.safetensors has " in text
    assert weights.read_bytes() == before
