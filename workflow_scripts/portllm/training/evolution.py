"""Evolve a model with Axolotl: render the recipe, run its command line, write a checkpoint."""

import logging
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from portllm.errors import HOST_MEMORY, InputError, out_of_memory
from portllm.jobs import signals
from portllm.storage import file_systems, files
from portllm.training import resuming
from portllm.transplant import companions, merging
from portllm.weights import adapters, checkpoints, finite
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)

PLUGIN = "portllm.training.axolotl_plugin.PortLLMPlugin"
COST_FILE = "PORTLLM_COST_FILE"
"""Environment variable with the path to which the plugin writes the cost of the devices."""
TRAINING = "training.json"
"""File that the plugin writes next to the cost file after the last training step, and only then."""
DIVERGED = "diverged.json"
"""File with the message of a diverged training, which the plugin writes next to the cost file."""
LEARNING_RATE = "learning_rate in the recipe"
"""What messages call the setting of the learning rate."""
INTERVALS = ("save_steps", "saves_per_epoch", "save_strategy", "save_total_limit")
"""Axolotl's keys for the checkpoint interval, which do not change the weights."""
ALMOST_FULL = 2**20
"""Free bytes below which a failure is attributed to a full disk."""

MEMORY_ADVICE = (
    "a smaller micro_batch_size with more gradient_accumulation_steps, a shorter sequence_len or "
    "gradient_checkpointing in the recipe, more devices (evolutions.*.resources.gpu) with FSDP or "
    "DeepSpeed"
)

LAST_BYTES = 65_536
"""How much of the end of Axolotl's output is searched for the cause of a failure."""


def render(
    recipe: dict[str, Any],
    *,
    model: Path,
    corpus: Path,
    work: Path,
    prepared: Path,
    seed: int,
) -> dict[str, Any]:
    """Return the final recipe: the user's recipe, then paths, seed and plugin.

    The corpus is used for every entry of `datasets` without a `path`. The recipe's own `plugins`
    are kept. Unless the recipe sets an interval, a checkpoint is saved every `resuming.SAVE_STEPS`
    steps.

    Args:
        recipe: the merged YAML files of the user, with the study's overrides.
        model: directory of the model to train.
        corpus: JSON-lines file to train on.
        work: directory for checkpoints and output.
        prepared: directory for the prepared dataset.
        seed: the training seed.
    """
    final = dict(recipe)
    datasets = final.get("datasets") or [{"type": "completion"}]
    final["datasets"] = [
        entry if "path" in entry else {"path": str(corpus), "ds_type": "json", **entry}
        for entry in datasets
    ]
    final["base_model"] = str(model)
    final["output_dir"] = str(work / "output")
    final["dataset_prepared_path"] = str(prepared)
    final["seed"] = seed
    final["plugins"] = [*final.get("plugins", []), PLUGIN]
    final.setdefault("auto_resume_from_checkpoints", True)
    if not any(final.get(key) for key in INTERVALS[:3]):
        final["save_steps"] = resuming.SAVE_STEPS
    final.setdefault("save_total_limit", resuming.KEPT)
    return final


def decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe without the keys of the checkpoint interval, for the checkpoints' key."""
    return {key: value for key, value in recipe.items() if key not in INTERVALS}


def environment(cost_file: Path) -> dict[str, str]:
    """Return the environment of Axolotl's process: no telemetry, no hub access, reproducible."""
    scripts = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")])),
        # Axolotl looks up its launchers in PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        COST_FILE: str(cost_file),
    }


def command(command_name: str, recipe: Path, devices: int) -> list[str]:
    """Return an Axolotl command; on several devices, `train` starts one process per device.

    The recipe chooses between DDP, FSDP and DeepSpeed.
    """
    words = [str(Path(sys.executable).with_name("axolotl")), command_name, str(recipe)]
    if command_name != "train":
        return words
    if devices < 2:
        # Without a launcher, which takes seconds to start.
        return [*words, "--launcher", "python"]
    # Explicit values, because the user's accelerate configuration may have others. Port 0 picks a
    # free port, so that two jobs do not collide on the default one.
    launch = {
        "num_machines": 1,
        "num_processes": devices,
        "gpu_ids": "all",
        "main_process_port": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    options = [word for name, value in launch.items() for word in (f"--{name}", str(value))]
    return [*words, "--launcher", "accelerate", "--", "--multi_gpu", *options]


def run(
    command_name: str,
    recipe: Path,
    *,
    cost_file: Path,
    devices: int = 0,
    keep_open: Sequence[int] = (),
) -> None:
    """Run an Axolotl command on a rendered recipe.

    Args:
        command_name: `train` or `preprocess`.
        recipe: the rendered recipe.
        cost_file: where the plugin writes the cost of the devices.
        devices: the number of training processes if more than one.
        keep_open: file descriptors that Axolotl inherits.

    Raises:
        InputError: Axolotl failed; the message names a lack of memory or disk space, or a
            training that diverged, as the cause.
        SystemExit: a signal ended Axolotl.
    """
    for file in _cost_files(cost_file):
        file.unlink()
    cost_file.with_name(DIVERGED).unlink(missing_ok=True)
    words = command(command_name, recipe, devices)
    log.info("running %s", shlex.join(words))
    status, output = _stream(words, environment(cost_file), keep_open)
    if status == 0:
        return
    if status == -signal.SIGKILL:
        raise InputError(f"Axolotl was killed (signal 9) on {recipe}, most likely {HOST_MEMORY}")
    free = file_systems.free_bytes(recipe.parent)
    disk_full = f"the disk is full: {free:,} bytes are free" if free < ALMOST_FULL else None
    diverged = _read_divergence(cost_file.with_name(DIVERGED), recipe)
    cause = disk_full or diverged or out_of_memory(output, memory_advice=MEMORY_ADVICE)
    raise InputError(f"Axolotl failed on {recipe}: {cause or 'see its output above'}")


def _read_divergence(record: Path, recipe: Path) -> str | None:
    """Return why a training diverged, which may be its initial model; None if it did not."""
    if not record.exists():
        return None
    model = yaml.safe_load(recipe.read_text())["base_model"]
    initial = finite.problem(Checkpoint(Path(model)).tensors(), f"weights of {model}")
    return (
        f"{initial}; fetch or train this version again"
        if initial
        else files.read_json(record)["message"]
    )


def _stream(
    words: list[str], variables: dict[str, str], keep_open: Sequence[int]
) -> tuple[int, str]:
    """Run a program and pass its output on as it arrives; return its status and last output."""
    last, ready = b"", True
    with signals.passing_on_signals() as pass_to:
        process = subprocess.Popen(
            words,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=keep_open,
            preexec_fn=signals.ends_with_its_parent(),
        )
        pass_to(process)
        assert process.stdout is not None
        # Do not wait for the end of the pipe: an orphan of Axolotl may keep it open.
        while ready or process.poll() is None:
            ready = bool(select.select([process.stdout], [], [], 1.0)[0])
            if ready:
                # Not line by line: a progress bar does not end its lines.
                chunk = process.stdout.read1()
                if not chunk:
                    break
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                last = (last + chunk)[-LAST_BYTES:]
        process.wait()
    return process.returncode, last.decode(errors="replace")


def _cost_files(cost_file: Path) -> list[Path]:
    return sorted(cost_file.parent.glob(f"{cost_file.stem}.*{cost_file.suffix}"))


def write_cost(cost_file: Path, rank: int, cost: dict[str, Any]) -> None:
    """Write the device cost of one training process to its own file."""
    files.write_json(cost_file.with_suffix(f".{rank}{cost_file.suffix}"), cost)


def read_cost(cost_file: Path) -> dict[str, Any]:
    """Combine the device costs of all training processes; empty if there are none.

    Each process reports every device but only its own memory there, so the peak of a device is the
    maximum over processes.
    """
    costs = [files.read_json(file) for file in _cost_files(cost_file)]
    if not costs:
        return {}
    peaks = zip(*(cost["peak_device_bytes"] for cost in costs), strict=True)
    return {**costs[0], "peak_device_bytes": [max(of_device) for of_device in peaks]}


def collect(model: Path, trained: Path, directory: Path) -> str:
    """Turn the output of Axolotl into a full checkpoint.

    Args:
        model: directory of the model that was trained.
        trained: Axolotl's output. An adapter is merged into `model`; full weights are hard-linked,
            so that they survive an interruption.
        directory: where the checkpoint is written.

    Returns:
        "lora" or "full".

    Raises:
        InputError: trained weights are not finite, or none differs from the model's.
    """
    kind = _write_checkpoint(model, trained, directory)
    if checkpoints.have_equal_weights(Checkpoint(model), Checkpoint(directory)):
        raise InputError(
            f"the training moved no weight of {model}: raise {LEARNING_RATE} or the number of "
            "steps, or train in a dtype that resolves the updates"
        )
    return kind


def _write_checkpoint(model: Path, trained: Path, directory: Path) -> str:
    advice = f"the training diverged: lower {LEARNING_RATE}"
    if (trained / adapters.CONFIG).exists():
        stored = finite.stored(trained / adapters.WEIGHTS)
        finite.check(stored, f"tensors of the adapter {trained}", advice)
        merging.merge(Checkpoint(model), adapters.load(trained), directory)
        return "lora"
    finite.check(Checkpoint(trained).tensors(), f"weights of {trained}", advice)
    for shard in Checkpoint(trained).shard_paths:
        try:
            (directory / shard.name).hardlink_to(shard)
        except OSError:
            shutil.copyfile(shard, directory / shard.name)
    index = trained / checkpoints.INDEX
    if index.exists():
        shutil.copyfile(index, directory / index.name)
    # From the trained model, because training may have added tokens or changed the dtype.
    companions.copy_companions(trained, directory)
    return "full"
