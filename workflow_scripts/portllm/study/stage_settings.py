"""Select the settings of each stage: the parts of the configuration that it uses, and no others.

Rules pass these settings to their programs as parameters, so a change of any other key does not
rerun a stage's jobs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from portllm.errors import InputError
from portllm.study import matrix
from portllm.study.matrix import Cell, Config, Patch
from portllm.study.schema import NULL

Settings = dict[str, Any]

CHAT = ("chat_template", "system_instruction", "fewshot_as_multiturn")
"""Settings of `scoring` that a task may override."""


def names(mapping: Mapping[str, Any]) -> list[str]:
    """Return the names of an artefact in the study, as `key=value`."""
    return [f"{key}={value}" for key, value in mapping.items()]


def without(settings: Settings, *names: str) -> Settings:
    """Return settings without some names."""
    return {name: value for name, value in settings.items() if name not in names}


def fetch_patch_settings(config: Config, patch: Patch) -> Settings:
    """Return the source of an existing patch, and its names in the study."""
    source = without(matrix.existing_patches(config)[patch], "trained_on")
    return {**source, "names": names(asdict(patch))}


def fetch_update_settings(config: Config, model: str, version: str) -> Settings:
    """Return the source of the adapter that a release is, and its names in the study."""
    source = matrix.adapter_releases(config)[model, version]["adapter"]
    return {**source, "names": names({"model": model, "version": version})}


def patch_settings(config: Config, task: str) -> Settings:
    """Return the training settings of a task's patch: the study's, overridden by the task's."""
    return {**config["patch"], **config["tasks"][task].get("patch", {})}


def batches_per_device(batch_size: int, accumulation: int, devices: int) -> tuple[int, int]:
    """Divide the examples of an update between devices; fewer accumulated batches come first.

    Returns:
        The batch size and the number of accumulated batches of each device.

    Raises:
        InputError: they cannot be divided evenly.
    """
    shared = math.gcd(accumulation, devices)
    if batch_size % (devices // shared):
        raise InputError(
            f"{devices} GPUs cannot share an update of patch.batch_size {batch_size} x "
            f"patch.gradient_accumulation {accumulation} examples evenly"
        )
    return batch_size // (devices // shared), accumulation // shared


def pretraining_settings(config: Config, model: str) -> Settings:
    """Return the settings of a pretrained base, without its corpus, which is an input."""
    return without(config["models"][model]["base"]["from_scratch"], "corpus")


def recipe_files(config: Config, version: str) -> list[str]:
    """Return the Axolotl YAML files of an evolution; later ones override earlier ones."""
    recipe = config["evolutions"][version]["recipe"]
    return [recipe] if isinstance(recipe, str) else recipe


def preprocessed_evolutions(config: Config) -> list[str]:
    """List the evolutions whose dataset is prepared in a separate job."""
    return [name for name, definition in config["evolutions"].items() if definition["preprocess"]]


def evolution_settings(config: Config, version: str) -> Settings:
    """Return the settings of an evolution, without its inputs."""
    definition = config["evolutions"][version]
    return {"overrides": definition["overrides"], "seed": definition["seed"]}


def resources(config: Config, stage: str, version: str | None = None) -> Settings:
    """Return the resources that the study sets for the jobs of a stage, or for one evolution."""
    of_stage = config["resources"].get(stage, {})
    if stage != "evolve" or version not in config["evolutions"]:
        return of_stage
    return {**of_stage, **config["evolutions"][version]["resources"]}


def method_settings(config: Config, name: str) -> Settings:
    """Return the kind of a transplant method, and its parameters as `name=value`."""
    definition = config["methods"][name]
    return {"method": definition["kind"], "parameter": names(without(definition, "kind")) or None}


def _lm_eval_task(config: Config, task: str) -> Settings:
    definition = config["tasks"][task]
    return {
        "lm_eval": definition.get("lm_eval", task),
        "include": definition.get("include"),
        "allow_unsafe_code": definition["allow_unsafe_code"] or None,
    }


def task_data_settings(config: Config, task: str) -> Settings:
    """Return the settings of the stage that prepares a task's data."""
    limit = config["tasks"][task]["training_limit"]
    untrained = task not in matrix.trained_tasks(config)
    return {**_lm_eval_task(config, task), "training_limit": limit, "no_training": untrained}


def scoring_settings(config: Config, task: str) -> Settings:
    """Return the settings of the jobs that score a task."""
    definition = config["tasks"][task]
    of_task = {name: definition[name] for name in ("few_shot", "limit")}
    chat = {name: definition[name] for name in CHAT if name in definition}
    settings = {**_lm_eval_task(config, task), **of_task, **config["scoring"], **chat}
    if settings["fewshot_as_multiturn"] is False:
        # Omitting the option would mean its default, which is null.
        settings["fewshot_as_multiturn"] = "false"
    return settings


def scored_cells(cells: list[Cell], adapters: Iterable[str]) -> Settings:
    """Name the cells of a scoring job.

    Args:
        cells: All cells of the job.
        adapters: Paths of the adapters that its patched cells apply, in the order of these cells.

    Returns:
        `un_patched`, whether to score the version without a patch; `adapter`, each patched cell as
        `trained_on/method/seed=path`.

    """
    patched = [cell for cell in cells if cell.patch]
    named = [
        f"{cell.trained_on}/{cell.method}/{cell.seed}={adapter}"
        for cell, adapter in zip(patched, adapters, strict=True)
    ]
    return {"un_patched": any(not cell.patch for cell in cells), "adapter": named or None}


def loss_slice_settings(config: Config, task: str) -> Settings:
    """Return the settings of the jobs that measure the loss between two patches of a task."""
    scoring = {name: config["scoring"][name] for name in ("batch_size", "dtype")}
    length = {"max_length": patch_settings(config, task)["max_length"]}
    line = dict(config["loss_slices"])
    # Omitting the option would mean its default, which is a number.
    line["items"] = NULL if line["items"] is None else line["items"]
    return {**_lm_eval_task(config, task), **line, **scoring, **length}


def imported_settings(config: Config, source: str) -> Settings:
    """Return a source of imported scores, and the default seed of its patches."""
    return {**config["imported"][source], "seed": config["study"]["seeds"][0]}
