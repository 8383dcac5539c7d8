"""Evolving a model with Axolotl: the final recipe, its own command line, a full checkpoint."""

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

from portllm.errors import HOST_MEMORY, InputError, out_of_memory
from portllm.jobs import signals
from portllm.storage import files
from portllm.training import resuming
from portllm.transplant import merging
from portllm.weights import adapters, checkpoints
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)

PLUGIN = "portllm.training.axolotl_plugin.PortLLMPlugin"
COST_FILE = "PORTLLM_COST_FILE"
"""Environment variable that tells the plugin where to write the devices' cost."""
TRAINING = "training.json"
"""What the plugin writes beside the cost when, and only when, the last step has been done."""
INTERVALS = ("save_steps", "saves_per_epoch", "save_strategy", "save_total_limit")
"""Axolotl's keys that say when checkpoints are written; they change no weights."""
ALMOST_FULL = 2**20
"""Free bytes below which a failure is put down to the disk."""

MEMORY_ADVICE = (
    "a smaller micro_batch_size with more gradient_accumulation_steps, a shorter sequence_len or "
    "gradient_checkpointing in the recipe, more devices (resources.evolve.gpu) with FSDP or "
    "DeepSpeed"
)

LAST_BYTES = 65_536
"""How much of what Axolotl has said last is searched for why it failed."""


def render(
    recipe: dict[str, Any],
    overrides: dict[str, Any],
    *,
    model: Path,
    corpus: Path,
    work: Path,
    prepared: Path,
    seed: int,
) -> dict[str, Any]:
    """The recipe that Axolotl runs: the user's, the overrides, and what only the workflow knows.

    An entry of `datasets` without a `path` is given the corpus. A recipe's own `plugins` stay.
    Where nothing says when to save, a checkpoint is written every `resuming.SAVE_STEPS` steps.
    """
    final = {**recipe, **overrides}
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
    """The part of a recipe that decides the weights, as far as checkpoints are concerned."""
    return {key: value for key, value in recipe.items() if key not in INTERVALS}


def environment(cost_file: Path) -> dict[str, str]:
    """Environment of Axolotl's process: no telemetry, no hub, equal runs for equal seeds."""
    here = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        # Axolotl starts its launchers by name.
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
    """A command of Axolotl's own: with several devices, one training process for each of them.

    Whether they share the work by DDP, FSDP or DeepSpeed is the recipe's choice.
    """
    words = [str(Path(sys.executable).with_name("axolotl")), command_name, str(recipe)]
    if command_name != "train":
        return words
    if devices < 2:
        # Spares the start of a launcher.
        return [*words, "--launcher", "python"]
    # All that a person's own default configuration of accelerate could say otherwise is said, and
    # two jobs must not meet on its default port.
    launch = {
        "num_machines": 1,
        "num_processes": devices,
        "gpu_ids": "all",
        "main_process_port": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    given = [word for name, value in launch.items() for word in (f"--{name}", str(value))]
    return [*words, "--launcher", "accelerate", "--", "--multi_gpu", *given]


def run(
    command_name: str,
    recipe: Path,
    *,
    cost_file: Path,
    devices: int = 0,
    keep_open: Sequence[int] = (),
) -> None:
    """Run a command of Axolotl's own, `train` or `preprocess`, on a rendered recipe.

    The descriptors `keep_open` stay open in Axolotl. Raises InputError when Axolotl fails, with the
    reason where memory or the disk ran out, else pointing at the log; and SystemExit when a signal
    has ended it.
    """
    for file in _cost_files(cost_file):
        file.unlink()
    words = command(command_name, recipe, devices)
    log.info("running %s", shlex.join(words))
    status, said = _stream(words, environment(cost_file), keep_open)
    if status == 0:
        return
    if status == -signal.SIGKILL:
        raise InputError(f"Axolotl was killed (signal 9) on {recipe}, most likely {HOST_MEMORY}")
    free = files.free_bytes(recipe.parent)
    full = f"the disk is full: {free:,} bytes are free" if free < ALMOST_FULL else None
    reason = full or out_of_memory(said, memory_advice=MEMORY_ADVICE)
    raise InputError(f"Axolotl failed on {recipe}: {reason or 'what it said stands above'}")


def _stream(
    words: list[str], variables: dict[str, str], keep_open: Sequence[int]
) -> tuple[int, str]:
    """Run a program, passing on what it says as it says it; its status and its last words."""
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
        # Not to the end of the pipe alone: processes that it has lost may keep that open.
        while ready or process.poll() is None:
            ready = bool(select.select([process.stdout], [], [], 1.0)[0])
            if ready:
                # Not by lines: a progress bar has none.
                said = process.stdout.read1()
                if not said:
                    break
                sys.stdout.buffer.write(said)
                sys.stdout.buffer.flush()
                last = (last + said)[-LAST_BYTES:]
        process.wait()
    return process.returncode, last.decode(errors="replace")


def _cost_files(cost_file: Path) -> list[Path]:
    return sorted(cost_file.parent.glob(f"{cost_file.stem}.*{cost_file.suffix}"))


def write_cost(cost_file: Path, rank: int, cost: dict[str, Any]) -> None:
    """Note the devices' cost as one of several training processes sees it, beside the others'."""
    files.write_json(cost_file.with_suffix(f".{rank}{cost_file.suffix}"), cost)


def read_cost(cost_file: Path) -> dict[str, Any]:
    """The devices' cost over all training processes; empty where none wrote any.

    Each process sees every device but knows only of its own memory there, so that a device's
    peak is the highest that any of them saw.
    """
    costs = [files.read_json(file) for file in _cost_files(cost_file)]
    if not costs:
        return {}
    peaks = zip(*(cost["peak_device_bytes"] for cost in costs), strict=True)
    return {**costs[0], "peak_device_bytes": [max(seen) for seen in peaks]}


def collect(model: Path, trained: Path, directory: Path) -> str:
    """Turn what Axolotl left in `trained` into a full checkpoint; return how it was trained.

    A LoRA adapter is merged into `model`; full weights are linked, so that an interruption leaves
    what was trained where it is.
    """
    if (trained / adapters.CONFIG).exists():
        merging.merge(Checkpoint(model), adapters.load(trained), directory)
        return "lora"
    for shard in Checkpoint(trained).shard_paths:
        try:
            (directory / shard.name).hardlink_to(shard)
        except OSError:
            shutil.copyfile(shard, directory / shard.name)
    index = trained / checkpoints.INDEX
    if index.exists():
        shutil.copyfile(index, directory / index.name)
    # From the trained model, not from its parent: training may have added tokens or changed dtype.
    merging.copy_companions(trained, directory)
    return "full"
