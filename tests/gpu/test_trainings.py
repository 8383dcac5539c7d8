"""Trainings on a device against their equals: resumed, fused, packed, in float32."""

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PROJECT, wait_for
from gpu.plugin import ON_CPU, Record
from gpu.random_models import (
    SIZE,
    finished,
    job,
    job_words,
    peak_device_bytes,
    save_random_version,
    text,
    write_training_data,
)
from safetensors.torch import load_file

from portllm.storage import files
from portllm.training import resuming
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-4 if ON_CPU else 0.01
"""Largest relative difference of a loss between two ways to compute it."""


@pytest.fixture(scope="module")
def version(folder: Path) -> Path:
    """A small model with float32 weights, so that a merge rounds away no update."""
    return save_random_version(folder / "small", "small", torch.float32)


def distance(first: Path, second: Path) -> float:
    """Return the norm of the difference of two adapters, relative to the first one's."""
    a, b = (load_file(directory / adapters.WEIGHTS) for directory in (first, second))
    difference = sum(float((a[name] - b[name]).square().sum()) for name in a)
    return (difference / sum(float(a[name].square().sum()) for name in a)) ** 0.5


def test_a_resumed_patch_is_that_of_an_undisturbed_training(
    version: Path, tmp_path: Path, record: Record
) -> None:
    task = write_training_data(tmp_path / "task", 64)
    options = ["--model", version, "--task", task, "--max-steps", SIZE["steps"]]

    def train(name: str) -> dict[str, Any]:
        return finished(
            "train", "train_patch.py", *options, "--checkpoint-steps", 10,
            "--work", tmp_path / f"work of {name}", output=tmp_path / name,
        )  # fmt: skip

    train("first")
    train("second")
    stopped = subprocess.Popen(
        job_words(
            "train", "train_patch.py", *options, "--checkpoint-steps", 10,
            "--work", tmp_path / "work of resumed", "--output", tmp_path / "resumed",
        )
    )  # fmt: skip
    wait_for(lambda: list(tmp_path.glob(f"work of resumed/*/checkpoint-*/{resuming.SEAL}")))
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM
    steps = train("resumed")["training"]["resumed_from_step"]
    assert 0 < steps < SIZE["steps"]
    first = tmp_path / "first"
    # Atomic sums in the attention's backward pass may make two equal trainings differ.
    repeated, resumed = distance(first, tmp_path / "second"), distance(first, tmp_path / "resumed")
    record(resumed_from_step=steps, repeated=repeated, resumed=resumed)
    assert resumed <= 3 * repeated + 1e-3


@pytest.mark.gpu(on_cpu=False)
def test_lack_of_device_memory_is_one_line_with_advice(
    version: Path, tmp_path: Path, record: Record
) -> None:
    batch = 4096
    task = write_training_data(tmp_path / "task", batch)
    done = job(
        "train", "train_patch.py", "--model", version, "--task", task, "--max-steps", 1,
        "--batch-size", batch, "--work", tmp_path / "work", "--output", tmp_path / "patch",
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    record(message=last)
    assert done.returncode == 1
    assert last.startswith("error: out of device memory (Tried to allocate ")
    assert "patch.batch_size" in last
    assert "Traceback" not in done.stderr


ON_ANY_DEVICE: dict[str, Any] = {
    "datasets": [{"type": "alpaca"}],
    "sequence_len": 2048,
    "logging_steps": 1,
    "warmup_ratio": 0.0,
    "learning_rate": 1.0e-2,
    "gradient_accumulation_steps": 1,
}
TINY: dict[str, Any] = {"bf16": False, "optimizer": "adamw_torch", "gradient_checkpointing": False}
STEPS = 5
ROWS = 8
"""Items of the corpus. One batch holds them all, so every step trains on the same items."""


class Evolutions:
    """Evolutions of one version with shipped recipes, each made once."""

    def __init__(self, version: Path, folder: Path) -> None:
        self.version, self.folder = version, folder
        source = random.Random(0)
        rows = [
            {"instruction": text(2 + row, source), "input": "", "output": text(9, source)}
            for row in range(ROWS)
        ]
        files.write_json_lines(folder / "corpus.jsonl", rows)

    def train(self, recipe: str, name: str, **overrides: Any) -> dict[str, Any]:
        """Train with a recipe of config/axolotl and return the manifest of the new version."""
        values = {**ON_ANY_DEVICE, **(TINY if ON_CPU else {}), **overrides}
        override = self.folder / f"{name}.yaml"
        override.write_text(yaml.safe_dump(values))
        return finished(
            "train", "evolve.py", "--model", self.version, "--corpus", self.folder / "corpus.jsonl",
            "--recipe", PROJECT / "config" / "axolotl" / recipe, override,
            "--seed", 1, "--work", self.folder / "work", output=self.folder / name,
        )  # fmt: skip

    def movement(self, name: str) -> tuple[float, float]:
        """Return the norm of an evolution's update, and the share of weights that it moved."""
        old, new = Checkpoint(self.version), Checkpoint(self.folder / name)
        squares, moved, count = 0.0, 0, 0
        for weight in old.shapes:
            change = new.read(weight).float() - old.read(weight).float()
            squares += float(change.square().sum())
            moved, count = moved + int((change != 0).sum()), count + change.numel()
        return squares**0.5, moved / count


@pytest.fixture
def evolutions(version: Path, tmp_path: Path) -> Evolutions:
    return Evolutions(version, tmp_path)


def losses(manifest: dict[str, Any]) -> list[float]:
    """Return the loss of each step, which must fall, or equal losses would show nothing."""
    values = [loss for _, loss in manifest["training"]["losses"]]
    assert values[-1] < (1 - 3 * TOLERANCE) * values[0], values
    return values


PLAIN = {
    "micro_batch_size": ROWS,
    "sample_packing": False,
    "pad_to_sequence_len": False,
    "lora_dropout": 0.0,
}
KERNELS = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), True)


PACKED = {"micro_batch_size": 1, "sample_packing": True, "pad_to_sequence_len": True}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(PACKED, id="packed"),
        pytest.param(KERNELS, id="fused kernels", marks=pytest.mark.gpu(on_cpu=False)),
    ],
)
def test_losses_are_those_of_the_plain_training(
    changed: dict[str, Any], evolutions: Evolutions, record: Record
) -> None:
    plain = evolutions.train("lora.yaml", "plain", **PLAIN, num_epochs=STEPS)
    other = evolutions.train("lora.yaml", "other", **{**PLAIN, **changed}, num_epochs=STEPS)
    first, second = losses(plain), losses(other)
    record(
        plain=first,
        other=second,
        peak_bytes=[peak_device_bytes(plain), peak_device_bytes(other)],
        wall_seconds=[plain["cost"]["wall_seconds"], other["cost"]["wall_seconds"]],
        attention=other["parameters"]["recipe"]["attn_implementation"],
    )
    assert len(first) == len(second) == STEPS
    assert second == pytest.approx(first, rel=TOLERANCE)


def test_full_weights_move_as_in_float32(evolutions: Evolutions, record: Record) -> None:
    few = {**PLAIN, "num_epochs": 10, "learning_rate": 1.0e-5}
    del few["lora_dropout"]
    mixed = evolutions.train("full.yaml", "mixed", **few, **({"bf16": True} if ON_CPU else {}))
    evolutions.train("full.yaml", "float32", **few, **{"bf16": False})
    (norm, share), (expected_norm, expected_share) = (
        evolutions.movement(name) for name in ("mixed", "float32")
    )
    record(
        share_moved={"mixed": share, "float32": expected_share},
        norm={"mixed": norm, "float32": expected_norm},
        peak_bytes=peak_device_bytes(mixed),
    )
    assert norm == pytest.approx(expected_norm, rel=0.05)
    assert share == pytest.approx(expected_share, abs=0.05)
