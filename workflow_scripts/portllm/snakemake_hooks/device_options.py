"""Devices that a run may use, from Snakemake's command line."""

import os
from collections.abc import Callable
from typing import Any

from portllm.jobs import devices
from portllm.planning import resource_requests


def device_limit(workflow: Any) -> int | None:
    """Return N of `--resources gpu=N` on this machine; None for no limit and on a cluster."""
    limit = workflow.global_resources.get("gpu")
    is_local = workflow.local_exec and workflow.is_main_process
    return limit.value if is_local and limit is not None else None


def devices_by_rule(workflow: Any, name_in_run: Callable[[str], str]) -> dict[str, int]:
    """Return N of each `--set-resources RULE:gpu=N`, without numbers that are expressions.

    `name_in_run` gives a rule's name in the run, which differs for the rules of a module.
    """
    own_names = {name_in_run(rule): rule for rule in resource_requests.MINUTES}
    overwritten = workflow.resource_settings.overwrite_resources.items()
    given = [(own_names.get(rule, rule), settings.get("gpu")) for rule, settings in overwritten]
    return {rule: gpu.value for rule, gpu in given if gpu and not gpu.is_evaluable()}


def has_devices(workflow: Any) -> bool:
    """Whether jobs have devices to compute on; assumed of the nodes of a cluster."""
    if device_limit(workflow) == 0:
        return False
    return bool(devices.pool(os.environ)) or not workflow.local_exec


def device_count(workflow: Any) -> int:
    """Return N of `--resources gpu=N`, else the number of this machine's devices; at least 1."""
    resource = workflow.global_resources.get("gpu")
    limit = None if resource is None else resource.value
    return max(1, len(devices.pool(os.environ)) if limit is None else limit)
