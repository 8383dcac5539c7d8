"""Check Axolotl recipes at the start of a run: their keys, and what a training job cannot do.

Axolotl ignores unknown keys, and is installed in another environment than Snakemake. So its keys
are a file of the workflow, which `make axolotl-keys` writes.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from portllm.errors import InputError, nearest
from portllm.storage.files import read_json
from portllm.study import stage_settings
from portllm.study.custom_code import DATASETS, listed
from portllm.study.matrix import Config
from portllm.study.yaml_files import KeyOrigins, read_recipe

KEYS = Path("resources", "axolotl", "keys.json")
"""Axolotl's keys, relative to the workflow's directory."""
PINS = Path("envs", "train.txt")
"""The packages of the training environment, relative to the workflow's directory."""

Recipe = dict[str, Any]
Layer = tuple[str, Recipe]
"""A place in the study, and the keys that a recipe file or `overrides` sets there."""

NEED_NETWORK = (
    "hub_model_id",
    "push_dataset_to_hub",
    "use_wandb",
    "wandb_project",
    "use_comet",
    "comet_project_name",
    "use_trackio",
    "trackio_project_name",
    "use_otel_metrics",
    "swanlab_project",
)
"""Keys that upload something or report to a server."""
_MLFLOW = ("use_mlflow", "mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name")
PACKAGES: dict[str, Callable[[Recipe], Any]] = {
    "deepspeed": lambda recipe: recipe.get("deepspeed"),
    "mlflow": lambda recipe: any(recipe.get(key) for key in _MLFLOW),
    "ray": lambda recipe: recipe.get("use_ray"),
    "came-pytorch": lambda recipe: recipe.get("optimizer") == "came_pytorch",
    "q-galore-torch": lambda recipe: recipe.get("optimizer") == "q_galore_adamw8bit",
    "torch-optimi": lambda recipe: recipe.get("optimizer") == "optimi_adamw",
    "flashoptim": lambda recipe: str(recipe.get("optimizer")).startswith("flash_"),
    "cut-cross-entropy": lambda recipe: recipe.get("cut_cross_entropy"),
    "densemixer": lambda recipe: recipe.get("dense_mixer"),
}
"""Packages that a recipe may need and the training environment lacks by default."""


def sequences_per_update(recipe: Recipe, devices: int) -> int:
    """Return the effective batch: sequences per device, accumulated batches and devices."""
    micro = recipe.get("micro_batch_size") or 1
    return micro * (recipe.get("gradient_accumulation_steps") or 1) * devices


def check(config: Config, workflow_directory: Path, origins: KeyOrigins) -> None:
    """Check the recipes of all evolutions.

    Raises:
        InputError: Axolotl has no such key, a package is missing, or a training job, which has no
            network, cannot do what the recipe says.
    """
    if not config["evolutions"]:
        return
    known = read_json(workflow_directory / KEYS)
    pins = workflow_directory / PINS
    checked: list[list[Recipe]] = []
    for name in config["evolutions"]:
        layers = list(_layers(config, name, origins))
        keys = [recipe for _, recipe in layers]
        if keys in checked:  # the updates of a chain share their recipe
            continue
        checked.append(keys)
        recipe = {key: value for layer in keys for key, value in layer.items()}
        allowed = _allowed_keys(known, recipe.get("plugins"))
        for place, layer in layers:
            if allowed is not None:
                _check_keys(layer, allowed, place, known)
        _check_datasets(recipe, layers)
        _check_network(recipe, layers)
        _check_packages(recipe, pins, origins.at("evolutions", name))


def _layers(config: Config, name: str, origins: KeyOrigins) -> Iterator[Layer]:
    place = origins.at("evolutions", name, "recipe")
    for file in stage_settings.recipe_files(config, name):
        yield f"{place}: {file}", read_recipe([Path(file)], origin=place)
    overrides = config["evolutions"][name]["overrides"]
    yield origins.at("evolutions", name, "overrides"), overrides


def _place_of(key: str, layers: Iterable[Layer]) -> str:
    """Return the last place that sets a key, and the key."""
    place = [place for place, recipe in layers if key in recipe][-1]
    return f"{place}: {key}"


def _allowed_keys(known: dict[str, Any], plugins: Any) -> Recipe | None:
    """Return Axolotl's keys and those of the plugins; None if one has unknown keys."""
    # A plugin can be named by its class's module or by a shorter path.
    of_class = {name.rpartition(".")[2]: keys for name, keys in known["plugins"].items()}
    allowed = dict(known["keys"])
    for plugin in plugins or ():
        name = str(plugin)
        keys = of_class.get(name.rpartition(".")[2])
        if keys is None:
            return None
        allowed |= keys
    return allowed


def _check_keys(values: Recipe, allowed: Recipe, place: str, known: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in allowed:
            plugin = next((name for name, keys in known["plugins"].items() if key in keys), None)
            reason = (
                f"belongs to {plugin}, which `plugins` does not list"
                if plugin
                else f"is no key of Axolotl {known['axolotl']}; {nearest(str(key), allowed)}"
            )
            raise InputError(f"{place}: {key} {reason}")
        if allowed[key] is not None:
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    _check_keys(entry, allowed[key], f"{place}: {key}", known)


def _check_datasets(recipe: Recipe, layers: list[Layer]) -> None:
    for key in DATASETS:
        for entry in listed(recipe.get(key)):
            source = entry if isinstance(entry, dict) else {"path": entry}
            path = source.get("path")
            is_format = bool(source.get("data_files")) or source.get("type") == "_synthetic"
            if path is not None and not is_format and not Path(str(path)).exists():
                raise InputError(
                    f"{_place_of(key, layers)}: no such file: {path}; training jobs have no "
                    "network: name a dataset of the hub under `corpora`, and leave `path` out"
                )


def _check_network(recipe: Recipe, layers: list[Layer]) -> None:
    is_offline = recipe.get("wandb_mode") in ("offline", "disabled")
    for key in NEED_NETWORK:
        if recipe.get(key) and not (is_offline and "wandb" in key):
            advice = "set wandb_mode: offline, or set" if "wandb" in key else "set"
            raise InputError(
                f"{_place_of(key, layers)}: training jobs have no network; {advice} {key}: null "
                "under `overrides` (the workflow records the losses)"
            )


def _check_packages(recipe: Recipe, pins: Path, place: str) -> None:
    installed = set(re.findall(r"^([\w.-]+)==", pins.read_text(), flags=re.MULTILINE))
    for package, needs in PACKAGES.items():
        if package not in installed and needs(recipe):
            advice = ", or shard with fsdp_config" if package == "deepspeed" else ""
            raise InputError(
                f"{place}: its recipe needs the package {package}, which {pins.parent.name}/"
                f"{pins.name} does not install: add it to {pins.with_suffix('.in').name} there "
                f"and run `make pins envs`{advice}"
            )
