"""A patch trained by two processes equals that of one, also when it is interrupted."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
from conftest import PROJECT, wait_for
from safetensors.numpy import load_file

from portllm.storage import files, manifests
from portllm.training import resuming
from portllm.weights import adapters

pytestmark = pytest.mark.slow

PYTHON = PROJECT / ".venvs" / "train" / "bin" / "python"
# As the program starts itself on two GPUs (test_data_parallel.py); here on the CPU.
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Two processes on a CPU have the device `cpu:0`, to which torch cannot load an optimiser's state.
ON_CPU = """
import runpy, sys, torch
restore = lambda storage, device: storage if device.startswith("cpu:") else None
torch.serialization.register_package(0, lambda storage: None, restore)
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STEPS = 40


def command(folder: Path, name: str, *launcher: Any) -> list[str]:
    """Return the command of a training that is the same for one process and for two."""
    settings = {
        "rank": 2,
        "dropout": 0.0,
        "learning_rate": 0.01,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "max_steps": STEPS,
        "checkpoint_steps": 5,
    }
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    places = ("--work", folder / f"work of {name}", "--output", folder / name)
    inputs = ("--model", folder / "model", "--task", folder / "task")
    program = PROJECT / "workflow_scripts" / "train_patch.py"
    return list(map(str, (PYTHON, *launcher, program, *inputs, *options, *places)))


def start(words: list[str]) -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=variables)


def manifest_of(words: list[str]) -> dict[str, Any]:
    process = start(words)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[:6000]
    return files.read_json(Path(words[-1]) / manifests.NAME)


def factors(directory: Path) -> Any:
    tensors = load_file(directory / adapters.WEIGHTS)
    return numpy.concatenate([tensors[name].ravel() for name in sorted(tensors)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "model")
    (tmp_path / "task").mkdir()
    words = tiny.SENTENCES[0].split()
    # Examples of different lengths: equal shares of examples have unequal numbers of tokens.
    rows = [
        {"prompt": f"is {' '.join(words[: 1 + i % 9])}?", "completion": " yes" if i % 3 else " no"}
        for i in range(64)
    ]
    (tmp_path / "task" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def test_two_processes_train_the_patch_of_one(folder: Path) -> None:
    alone = manifest_of(command(folder, "alone"))
    on_cpu = folder / "on_cpu.py"
    on_cpu.write_text(ON_CPU)
    together = command(folder, "together", *TWO, on_cpu)
    stopped = start(together)
    wait_for(lambda: list(folder.glob(f"work of together/*/checkpoint-*/{resuming.SEAL}")))
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate()
    assert stopped.returncode != 0
    resumed = manifest_of(together)
    assert 0 < resumed["training"]["resumed_from_step"] < STEPS
    losses = [[loss for _, loss in one["training"]["losses"]] for one in (alone, resumed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    first, second = factors(folder / "alone"), factors(folder / "together")
    assert numpy.abs(first - second).max() < 1e-4 * numpy.abs(first).max()
    assert not list(folder.glob("work of */*"))
