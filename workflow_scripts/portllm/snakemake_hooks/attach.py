"""Attach everything that the workflow adds to the Snakemake process."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from portllm.snakemake_hooks import clusters, environments, progress, run_guard
from portllm.snakemake_hooks.placement import Placement, is_first
from portllm.snakemake_hooks.progress import Progress


def attach(
    workflow: Any,
    logger: logging.Logger,
    place: Placement,
    *,
    environment_names: Iterable[str],
    minutes: Mapping[str, float],
    after_building: Callable[[], None],
) -> Progress | None:
    """Attach it to a workflow. Call this where the workflow is defined.

    - One run at a time uses the results, damaged results are made again, signals stop the jobs.
    - Jobs that a killed run left on a cluster are not submitted again.
    - Missing environments are built, then `after_building` is called.
    - Progress is reported.

    Returns:
        The progress; None if this workflow, as a module, has been set up before.
    """
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
    if not is_first(workflow, "progress"):
        return None
    by_name = {place.name_in_run(rule): value for rule, value in minutes.items()}
    return progress.follow(workflow, logger, by_name)
