"""Attach everything that the workflow adds to the Snakemake process."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from portllm.snakemake_hooks import (
    clock_skew,
    clusters,
    environments,
    progress,
    run_guard,
)
from portllm.snakemake_hooks.placement import Placement, is_first
from portllm.snakemake_hooks.progress import Progress
from portllm.storage import temporary


def attach(
    workflow: Any,
    logger: logging.Logger,
    place: Placement,
    *,
    environment_names: Iterable[str],
    minutes: Mapping[str, float],
    warnings: Iterable[str],
    after_building: Callable[[], None],
) -> Progress | None:
    """Attach it to a workflow. Call this where the workflow is defined.

    - One run at a time uses the results, damaged results are made again, signals stop the jobs.
    - Jobs that a killed run left on a cluster are not submitted again.
    - Missing environments are built, then `after_building` is called.
    - Wrong clocks delete no result and hide no change.
    - `warnings` about the jobs are logged.
    - Progress is reported.
    - If Snakemake is killed, a later run removes its temporary directories.

    Returns:
        The progress; None if this workflow, as a module, has been set up before.
    """
    if is_first(workflow, "temporary directories"):
        own_temporary_directories(workflow)
    if is_first(workflow, "clock skew"):
        clock_skew.attend(workflow, logger)
    plan = place.name_in_run("plan")
    if is_first(workflow, ("results", place.results)):
        run_guard.attend(workflow, logger, place.results, plan=plan)
        clusters.attend(workflow, place.results)
    names = tuple(environment_names)
    if is_first(workflow, ("environments", names)):
        environments.attend(
            workflow,
            logger,
            names,
            checkout=place.checkout,
            logs=place.logs,
            plan=plan,
            after_building=after_building,
        )
    if workflow.is_main_process and is_first(workflow, ("warnings", place.results)):
        for warning in warnings:
            logger.warning(f"Warning: {warning}")
    if not is_first(workflow, "progress"):
        return None
    by_name = {place.name_in_run(rule): value for rule, value in minutes.items()}
    return progress.follow(workflow, logger, by_name)


def own_temporary_directories(workflow: Any) -> None:
    """Mark the temporary directories of this Snakemake as its own."""
    # A Snakemake that runs a job uses the second directory of the one that started it.
    runtime_cache = workflow.sourcecache.runtime_cache
    also = [] if runtime_cache is None else [Path(runtime_cache.name)]
    temporary.own(workflow.snakemake_tmp_dir, also)
