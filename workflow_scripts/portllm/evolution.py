"""Evolving a model with Axolotl: the final recipe, its own command line, a full checkpoint."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from portllm import adapters, checkpoints, merging
from portllm.errors import InputError

log = logging.getLogger(__name__)

PLUGIN = "portllm.axolotl_plugin.PortLLMPlugin"
COST_FILE = "PORTLLM_COST_FILE"
"""Environment variable that tells the plugin where to write the devices' cost."""


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
    return final


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


def run(command_name: str, recipe: Path, *, cost_file: Path) -> None:
    """Run a command of Axolotl's own, `train` or `preprocess`, on a rendered recipe.

    Raises InputError, pointing at the log, when Axolotl fails.
    """
    command = [str(Path(sys.executable).with_name("axolotl")), command_name, str(recipe)]
    if command_name == "train":
        command += ["--launcher", "python"]
    log.info("running %s", " ".join(command))
    if subprocess.run(command, env=environment(cost_file), check=False).returncode != 0:
        raise InputError(f"Axolotl failed on {recipe}; what it said stands above")


def collect(model: Path, trained: Path, directory: Path) -> str:
    """Turn what Axolotl left in `trained` into a full checkpoint; return how it was trained.

    A LoRA adapter is merged into `model`; full weights are moved.
    """
    if (trained / adapters.CONFIG).exists():
        merging.merge(model, adapters.load(trained), directory)
        return "lora"
    for shard in checkpoints.shards(trained):
        shutil.move(shard, directory / shard.name)
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
