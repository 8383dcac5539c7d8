"""Decide the resources that each job requests: from the study, else estimated from the model.

Memory is the plan's estimate plus a margin. Run times are generous limits that grow with the
model's parameters, because a cluster kills jobs that exceed them. Both grow with each attempt,
because retried jobs have often failed for lack of memory or time.
"""

from collections.abc import Mapping
from typing import Any

from portllm.errors import InputError
from portllm.planning import architectures
from portllm.planning.architectures import UnknownError
from portllm.planning.estimates import DEVICE_BYTES, PricedStudy
from portllm.planning.planned_jobs import PlannedJob
from portllm.study import matrix, stage_settings

# Rules that share the settings of another stage.
STAGES = {
    "make_corpus": "corpus",
    "make_task_data": "task_data",
    "pretrain": "base",
    "fetch_model": "base",
    "fetch_patch": "patch",
    "train_patch": "patch",
    "fetch_update": "base",
    "merge": "transplant",
    "merge_release": "transplant",
    "measure_movement": "analyse",
    "measure_norms": "analyse",
    "measure_geometry": "analyse",
    "measure_loss_slice": "analyse",
}
GROWING = ("mem_mb", "runtime")

# Margin above the estimate for allocators, page-locked buffers and device contexts on the host.
MEMORY_FACTOR, MEMORY_EXTRA_MB = 1.5, 1000
# The estimate of a job that computes on the CPU is an upper bound.
CPU_FACTOR = 1.2
MEMORY_STEP_MB = 500

# Minutes: a constant, and per billion parameters. A patch with the published settings takes about
# 40 GPU-hours on the largest task (see resources/published). For 7 billion parameters this gives a
# day; longer trainings resume from their checkpoints in the next attempt.
MINUTES = {
    "pretrain": (60, 0),
    "train_patch": (60, 200),
    "preprocess": (120, 0),
    "evolve": (120, 200),
    "score": (60, 60),
    "transplant": (20, 1),
    "merge": (20, 5),
    "merge_release": (20, 5),
    "measure_movement": (20, 10),
    "measure_norms": (20, 30),
    "measure_geometry": (60, 60),
    "measure_loss_slice": (60, 60),
}
# Number of parameters below which one thread is fastest.
LARGE, THREADS_FOR_LARGE = 1_000_000_000, 4


def minutes_by_rule(priced: PricedStudy) -> dict[str, float]:
    """Return the minutes that the jobs of each rule request for the study's largest model.

    They are limits, not forecasts, but in proportion to each other.
    """
    sizes = [architectures.parameters(version.architecture) for version in priced.versions.values()]
    billions = max(sizes, default=0) / 1e9
    return {rule: start + per_billion * billions for rule, (start, per_billion) in MINUTES.items()}


def stage_of(rule: str) -> str:
    """Return the stage of a rule, the key under `resources` in the study."""
    return STAGES.get(rule, rule)


def requested(
    priced: PricedStudy,
    rule: str,
    names: dict[str, str],
    resource: str,
    default: int,
    attempt: int = 1,
) -> int:
    """Return how much of a resource a job requests.

    The study's own value comes first, then the estimate from the model, then `default` if the
    model's architecture is unknown before it is fetched.

    Args:
        priced: the study with its estimates.
        rule: the job's rule.
        names: the job's wildcards.
        resource: `threads`, `gpu`, `mem_mb` or `runtime` (minutes).
        default: the rule's default.
        attempt: 1 for the first attempt.
    """
    stage, version = stage_of(rule), names.get("version")
    value = stage_settings.resources(priced.config, stage, version).get(resource)
    if value is None:
        try:
            value = computed(priced, rule, names, resource)
        except UnknownError:
            value = None
    if value is None:
        value = default
    return value * attempt if resource in GROWING else value


def computed(priced: PricedStudy, rule: str, names: dict[str, str], resource: str) -> int | None:
    """Estimate a resource from the job's model; None if the rule has no formula.

    Raises:
        UnknownError: the architecture is unknown.
    """
    match resource:
        case "mem_mb":
            return _memory(priced, rule, names)
        case "gpu":
            if rule != "evolve":
                return None
            return priced.evolution_devices(names["model"], names["version"])
        case "runtime" if rule in MINUTES:
            start, per_billion = MINUTES[rule]
            return start + round(per_billion * _parameters(priced, names) / 1e9)
        case "threads" if rule in MINUTES:
            return THREADS_FOR_LARGE if _parameters(priced, names) >= LARGE else None
    return None


def _memory(priced: PricedStudy, rule: str, names: dict[str, str]) -> int | None:
    job_memory = priced.memory(PlannedJob(rule, tuple(names.items()), (), cached=False))
    if job_memory is None:
        return None
    _, estimate = job_memory
    if estimate.device is None or priced.uses_gpu(stage_of(rule), names.get("version")):
        megabytes = MEMORY_FACTOR * estimate.host / 1e6 + MEMORY_EXTRA_MB
    else:
        megabytes = CPU_FACTOR * estimate.host_alone / 1e6 + MEMORY_EXTRA_MB
    return -(-int(megabytes) // MEMORY_STEP_MB) * MEMORY_STEP_MB


def _parameters(priced: PricedStudy, names: dict[str, str]) -> int:
    """Return the parameters of the job's model, which are equal for all versions."""
    versions = [names.get(key) for key in ("version", "applied_to", "trained_on")]
    version = next(filter(None, versions), matrix.BASE)
    return architectures.parameters(priced.version(names["model"], version).architecture)


def check_devices(priced: PricedStudy, by_rule: Mapping[str, Any], limit: int | None) -> None:
    """Check that no job requests more devices than the run may use.

    Snakemake would silently lower the number. Checked are `--set-resources` and evolutions that
    shard their training; the study's own `resources` are checked with its configuration. Any run
    may use one device or none (`--resources gpu=0`).

    Args:
        priced: the study with its estimates.
        by_rule: devices per rule from `--set-resources`.
        limit: devices that the run may use; None for no limit.

    Raises:
        InputError: a job requests more.
    """
    if limit is None:
        return
    for rule, count in by_rule.items():
        if isinstance(count, int) and count > max(limit, 1):
            raise InputError(
                f"--set-resources {rule}:gpu={count}: the run may use {limit} devices "
                f"(--resources gpu={limit})"
            )
    for model, version in priced.versions:
        if "evolve" in by_rule or version not in priced.config["evolutions"]:
            continue
        count = requested(priced, "evolve", {"model": model, "version": version}, "gpu", 1)
        if count > max(limit, 1):
            raise InputError(
                f"evolutions.{version}: its recipe shards {model} over {count} devices of "
                f"{DEVICE_BYTES / 1e9:.0f} GB, but the run may use {limit} (--resources "
                f"gpu={limit}); evolutions.{version}.resources.gpu sets another number"
            )
