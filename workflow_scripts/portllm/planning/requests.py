"""What a job asks of its machine: the study's word for its stage, else worked out from the model.

Memory is the plan's estimate with room above it. Times are limits, not forecasts: a cluster kills
what runs past them, so they are generous and grow with the model's parameters. Both grow with each
attempt, since a retried job has often died of having too little.
"""

from collections.abc import Mapping
from typing import Any

from portllm.errors import InputError
from portllm.planning import formulas
from portllm.planning.estimates import PricedStudy
from portllm.planning.formulas import UnknownError
from portllm.planning.jobs import PlannedJob
from portllm.study import matrix

# Rules that share the settings of another stage.
STAGES = {
    "make_corpus": "corpus",
    "make_task_data": "task_data",
    "pretrain": "base",
    "fetch_model": "base",
    "fetch_patch": "patch",
    "train_patch": "patch",
    "merge": "transplant",
    "measure_movement": "analyse",
    "measure_norms": "analyse",
    "measure_geometry": "analyse",
    "measure_loss_slice": "analyse",
}
GROWING = ("mem_mb", "runtime")

# Above the estimate: allocators, page-locked buffers, a device's context on the host.
MEMORY_FACTOR, MEMORY_EXTRA_MB = 1.5, 1000
MEMORY_STEP_MB = 500

# Minutes: to start with, and for every billion parameters. A patch with the published settings
# takes about 40 hours of one GPU on the largest task (its source: resources/published), hence a
# day for 7 billion parameters; the checkpoints carry what takes longer into the next attempt.
MINUTES = {
    "pretrain": (60, 0),
    "train_patch": (60, 200),
    "preprocess": (120, 0),
    "evolve": (120, 200),
    "score": (60, 60),
    "transplant": (20, 1),
    "merge": (20, 5),
    "measure_movement": (20, 10),
    "measure_norms": (20, 30),
    "measure_geometry": (60, 60),
    "measure_loss_slice": (60, 60),
}
# Below this a job does its work on one thread faster than it can divide it.
LARGE, THREADS_FOR_LARGE = 1_000_000_000, 4
# What a sharded training may fill of each device: that of an 80 GB device.
DEVICE_BYTES = 80_000_000_000


def minutes_by_rule(priced: PricedStudy) -> dict[str, float]:
    """Return the minutes that the jobs of each rule request for the study's largest model.

    They are limits, not forecasts, but in proportion to each other.
    """
    sizes = [formulas.parameters(version.architecture) for version in priced.versions.values()]
    billions = max(sizes, default=0) / 1e9
    return {rule: start + per_billion * billions for rule, (start, per_billion) in MINUTES.items()}


def stage_of(rule: str) -> str:
    """The stage under whose name the study sets what a rule's jobs ask for."""
    return STAGES.get(rule, rule)


def wanted(
    priced: PricedStudy,
    rule: str,
    names: dict[str, str],
    resource: str,
    default: int,
    attempt: int = 1,
) -> int:
    """How much of a resource (threads, gpu, mem_mb, runtime in minutes) a job asks for.

    The study's own value counts first, then what follows from the model, then `default`, where
    the model's architecture is not known before it is fetched.
    """
    value = priced.config["resources"].get(stage_of(rule), {}).get(resource)
    if value is None:
        try:
            value = computed(priced, rule, names, resource)
        except UnknownError:
            value = None
    if value is None:
        value = default
    return value * attempt if resource in GROWING else value


def computed(priced: PricedStudy, rule: str, names: dict[str, str], resource: str) -> int | None:
    """A resource that follows from the job's model; None where the rule has no formula.

    Raises UnknownError where the architecture is not known.
    """
    match resource:
        case "mem_mb":
            return _memory(priced, rule, names)
        case "gpu":
            return _devices(priced, names) if rule == "evolve" else None
        case "runtime" if rule in MINUTES:
            start, per_billion = MINUTES[rule]
            return start + round(per_billion * _parameters(priced, names) / 1e9)
        case "threads" if rule in MINUTES:
            return THREADS_FOR_LARGE if _parameters(priced, names) >= LARGE else None
    return None


def _memory(priced: PricedStudy, rule: str, names: dict[str, str]) -> int | None:
    found = priced.memory(PlannedJob(rule, tuple(names.items()), (), cached=False))
    if found is None:
        return None
    _, estimate = found
    gpu = priced.config["resources"].get(stage_of(rule), {}).get("gpu")
    needed = estimate.host_alone if gpu == 0 else estimate.host
    megabytes = MEMORY_FACTOR * needed / 1e6 + MEMORY_EXTRA_MB
    return -(-int(megabytes) // MEMORY_STEP_MB) * MEMORY_STEP_MB


def _devices(priced: PricedStudy, names: dict[str, str]) -> int | None:
    """Devices of an evolution: one, unless its recipe shards the training over several."""
    recipe = priced.recipes[names["version"]]
    if not any(recipe.get(key) for key in ("deepspeed", "fsdp", "fsdp_config")):
        return None
    model = priced.version(names["model"], names["version"]).architecture
    training = formulas.evolution_training(recipe, gpu=True)
    return -(-sum(formulas.training_bytes(model, training).values()) // DEVICE_BYTES)


def _parameters(priced: PricedStudy, names: dict[str, str]) -> int:
    """Parameters of the job's model; all its versions have as many."""
    versions = [names.get(key) for key in ("version", "applied_to", "trained_on")]
    wanted_version = next(filter(None, versions), matrix.BASE)
    return formulas.parameters(priced.version(names["model"], wanted_version).architecture)


def check_devices(priced: PricedStudy, by_rule: Mapping[str, Any], limit: int | None) -> None:
    """Refuse jobs that ask for more devices than a run may use, None being no limit.

    Snakemake would lower their number and say nothing. `by_rule` are numbers that --set-resources
    names; else evolutions are looked at that shard their training. What the study itself asks for
    is checked with its configuration, and one device or none (`--resources gpu=0`) is the run's
    choice. Raises InputError.
    """
    if limit is None:
        return
    for rule, asked in by_rule.items():
        if isinstance(asked, int) and asked > max(limit, 1):
            raise InputError(
                f"--set-resources {rule}:gpu={asked}: the run may use {limit} devices "
                f"(--resources gpu={limit})"
            )
    for model, version in priced.versions:
        if "evolve" in by_rule or version not in priced.config["evolutions"]:
            continue
        asked = wanted(priced, "evolve", {"model": model, "version": version}, "gpu", 1)
        if asked > max(limit, 1):
            raise InputError(
                f"evolutions.{version}: its recipe shards {model} over {asked} devices of "
                f"{DEVICE_BYTES / 1e9:.0f} GB, but the run may use {limit} (--resources "
                f"gpu={limit}); resources.evolve.gpu sets another number"
            )
