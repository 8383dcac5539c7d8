"""Forecast the GPU time of jobs from steps, tokens and a throughput, or from finished jobs."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from portllm.planning import architectures, estimates, formulas
from portllm.planning.architectures import UnknownError
from portllm.planning.estimates import PricedStudy
from portllm.planning.planned_jobs import PlannedJob
from portllm.study import stage_settings

RATE = 125e12
"""Floating-point operations a second: 40 % of an A100's 312e12 in 16 bits."""
STEP_SECONDS, FORWARD_SECONDS = 0.0045, 0.0008
"""Least seconds per layer of a training's batch and of a forward pass, to launch the kernels.

A training of 32 layers launches about 8,000 for each batch, in 0.12 to 0.18 s.
"""
ROW_TOKENS = 350
"""Tokens of a corpus's row, as in OpenOrca."""
PADDING = 1.5
"""Tokens of a batch over those of its examples: batches are padded to their longest example."""


@dataclass(frozen=True)
class StageTime:
    """GPU seconds of the jobs of a rule that are to run, and of the longest one on its devices.

    `measured` counts the finished jobs that corrected the forecast, `unknown` the jobs without one.
    """

    rule: str
    seconds: float
    longest: float
    measured: int
    unknown: int


def gpu_seconds(priced: PricedStudy, job: PlannedJob) -> float:
    """Return the GPU time of a job, summed over its devices; 0 for jobs that use none.

    Raises:
        UnknownError: the model, the task's size or the corpus's size is not known yet.
    """
    names = dict(job.wildcards)
    match job.rule:
        case "train_patch":
            return _patch_seconds(priced, names)
        case "evolve":
            return _evolution_seconds(priced, names)
        case "score":
            return _scoring_seconds(priced, names)
    return 0


def _training_seconds(
    model: architectures.Architecture,
    training: formulas.TrainingMemory,
    batches: float,
    tokens: float,
) -> float:
    """Return the time of batches of a training with so many tokens in all.

    A pass forward takes 2 operations for each parameter and token, the gradients of activations
    and those of trained weights as many each, and gradient checkpointing another pass.
    """
    operations = 4 + 2 * (training.targets is None) + 2 * training.checkpointing
    computing = operations * architectures.parameters(model) * tokens / RATE
    return max(computing, batches * model.layers * STEP_SECONDS)


def _patch_seconds(priced: PricedStudy, names: dict[str, str]) -> float:
    settings = stage_settings.patch_settings(priced.config, names["task"])
    training = formulas.patch_training(settings, gpu=True)
    sizes = _task_sizes(priced, names["task"])
    if settings["max_steps"] is not None:
        batches = settings["max_steps"] * settings["gradient_accumulation"]
    else:
        limit = priced.config["tasks"][names["task"]]["training_limit"]
        examples = min(limit or math.inf, sizes["training_examples"])
        batches = math.ceil(examples / training.batch) * settings["epochs"]
    mean = PADDING * sizes["mean_request"] / estimates.CHARACTERS_PER_TOKEN
    tokens = batches * training.batch * min(training.length, mean)
    model = priced.version(names["model"], names["trained_on"]).architecture
    return _training_seconds(model, training, batches, tokens)


def _evolution_seconds(priced: PricedStudy, names: dict[str, str]) -> float:
    recipe = priced.recipes[names["version"]]
    training = formulas.evolution_training(recipe, gpu=True)
    devices = priced.evolution_devices(names["model"], names["version"]) or 1
    steps = recipe.get("max_steps") or 0
    if steps > 0:
        batches = steps * (recipe.get("gradient_accumulation_steps") or 1) * devices
        tokens = batches * training.batch * training.length
    else:
        rows = _rows(priced, priced.config["evolutions"][names["version"]]["corpus"])
        rows *= recipe.get("num_epochs") or 1
        tokens = rows * min(ROW_TOKENS, training.length)
        packed = tokens / training.length if recipe.get("sample_packing") else rows
        batches = packed / training.batch
    model = priced.version(names["model"], names["version"]).architecture
    return _training_seconds(model, training, batches, tokens)


def _scoring_seconds(priced: PricedStudy, names: dict[str, str]) -> float:
    sizes = _task_sizes(priced, names["task"])
    settings = stage_settings.scoring_settings(priced.config, names["task"])
    model = priced.version(names["model"], names["applied_to"]).architecture
    cells = len(priced.cells[names["model"], names["applied_to"], names["task"]])
    requests = sizes["requests"]
    mean = sizes["mean_request"] * (1 + settings["few_shot"]) / estimates.CHARACTERS_PER_TOKEN
    computing = 2 * architectures.parameters(model) * requests * mean / RATE
    # Each generated token takes a pass of its own.
    passes = math.ceil(requests / settings["batch_size"]) * (1 + sizes["generated_tokens"])
    return cells * max(computing, passes * model.layers * FORWARD_SECONDS)


def _task_sizes(priced: PricedStudy, task: str) -> dict[str, int]:
    sizes = priced.task_sizes(task)
    if "requests" not in sizes:
        raise UnknownError(f"{task}: the number of its items is unknown before its data exists")
    return sizes


def _rows(priced: PricedStudy, corpus: str) -> int:
    manifest = estimates.read_manifest(priced.results / "corpora" / f"{corpus}.jsonl")
    rows = manifest.get("parameters", {}).get("rows", priced.config["corpora"][corpus]["limit"])
    if rows is None:
        raise UnknownError(f"{corpus}: the number of its rows is unknown before it exists")
    return rows


def _measured_seconds(job: PlannedJob) -> float | None:
    """Return the GPU time of a finished job; None if it has none or ran on a CPU."""
    cost = estimates.read_manifest(Path(job.outputs[0])).get("cost", {})
    return cost.get("wall_seconds", 0) * cost.get("devices", 0) or None


def forecast(priced: PricedStudy, jobs: Iterable[PlannedJob]) -> list[StageTime]:
    """Forecast the jobs that are to run, by rule.

    Finished jobs of a rule correct its forecast by the ratio of their durations to their forecasts.
    """
    by_rule: dict[str, list[PlannedJob]] = defaultdict(list)
    for job in jobs:
        by_rule[job.rule].append(job)
    return [time for rule, of_rule in by_rule.items() if (time := _stage(priced, rule, of_rule))]


def _stage(priced: PricedStudy, rule: str, jobs: list[PlannedJob]) -> StageTime | None:
    pending, longest, unknown = [], 0.0, 0
    measured, expected, count = 0.0, 0.0, 0
    for job in jobs:
        try:
            seconds = gpu_seconds(priced, job)
        except UnknownError:
            unknown += not job.cached
            continue
        if not job.cached:
            pending.append(seconds)
            longest = max(longest, seconds / _devices(priced, job))
        elif (actual := _measured_seconds(job)) is not None:
            measured, expected, count = measured + actual, expected + seconds, count + 1
    if not unknown and not any(pending):
        return None
    ratio = measured / expected if expected else 1
    return StageTime(rule, ratio * sum(pending), ratio * longest, count, unknown)


def _devices(priced: PricedStudy, job: PlannedJob) -> int:
    names = dict(job.wildcards)
    if job.rule == "evolve":
        return max(1, priced.evolution_devices(names["model"], names["version"]) or 1)
    stage = {"train_patch": "patch"}.get(job.rule, job.rule)
    return max(1, stage_settings.resources(priced.config, stage).get("gpu", 1))
