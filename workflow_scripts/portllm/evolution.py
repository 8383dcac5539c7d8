"""Evolving a model with Axolotl: the final recipe, its own command line, a full checkpoint."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from portllm import adapters, checkpoints, files, merging, processes, resuming
from portllm.errors import InputError

log = logging.getLogger(__name__)

PLUGIN = "portllm.axolotl_plugin.PortLLMPlugin"
COST_FILE = "PORTLLM_COST_FILE"
"""Environment variable that tells the plugin where to write the devices' cost."""
TRAINING = "training.json"
"""What the plugin writes beside the cost when, and only when, the last step has been done."""
INTERVALS = ("save_steps", "saves_per_epoch", "save_strategy", "save_total_limit")
"""Axolotl's keys that say when checkpoints are written; they change no weights."""
ALMOST_FULL = 2**20
"""Free bytes below which a failure is put down to the disk."""


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
    here = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        COST_FILE: str(cost_file),
    }


def run(command_name: str, recipe: Path, *, cost_file: Path, keep_open: Sequence[int] = ()) -> None:
    """Run a command of Axolotl's own, `train` or `preprocess`, on a rendered recipe.

    The descriptors `keep_open` stay open in Axolotl. Raises InputError, pointing at the log, when
    Axolotl fails, and SystemExit when a signal has ended it.
    """
    command = [str(Path(sys.executable).with_name("axolotl")), command_name, str(recipe)]
    if command_name == "train":
        command += ["--launcher", "python"]
    log.info("running %s", " ".join(command))
    with processes.passing_on_signals() as pass_to:
        process = subprocess.Popen(
            command,
            env=environment(cost_file),
            pass_fds=keep_open,
            preexec_fn=processes.ends_with_its_parent(),
        )
        pass_to(process)
        process.wait()
    if process.returncode != 0:
        free = files.free_bytes(recipe.parent)
        full = f"the disk is full: {free:,} bytes are free" if free < ALMOST_FULL else None
        raise InputError(f"Axolotl failed on {recipe}: {full or 'what it said stands above'}")


def collect(model: Path, trained: Path, directory: Path) -> str:
    """Turn what Axolotl left in `trained` into a full checkpoint; return how it was trained.

    A LoRA adapter is merged into `model`; full weights are linked, so that an interruption leaves
    what was trained where it is.
    """
    if (trained / adapters.CONFIG).exists():
        merging.merge(model, adapters.load(trained), directory)
        return "lora"
    for shard in checkpoints.shards(trained):
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


def read_recipes(paths: list[Path]) -> dict[str, Any]:
    """Read Axolotl YAMLs, each laid over those before it: a key that comes later wins."""
    recipe: dict[str, Any] = {}
    for path in paths:
        recipe.update(_read_recipe(path))
    return recipe


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: no mapping of Axolotl's keys")
    return recipe
