"""Describe the running workflow to the processes behind `snakemake plan`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_study(
    config: dict[str, Any], results: Path, rules: Mapping[str, Any], **devices: Any
) -> dict[str, Any]:
    """Return the study and, of each rule, what the plan prices: its outputs and resources.

    `rules` are Snakemake's rule proxies by the rules' own names; in a module, the run has others.
    `devices` are what the plan is told of the run's devices.
    """
    described = [
        {
            "name": name,
            "name_in_run": proxy.rule.name,
            "outputs": list(map(str, proxy.rule.output)),
            "gpu": "gpu" in proxy.rule.resources,
            "temporary": any(path.flags.get("temp", False) for path in proxy.rule.output),
        }
        for name, proxy in rules.items()
        if proxy.rule.output
    ]
    return {
        "config": config,
        "results": str(results),
        "rules": described,
        **devices,
    }


def study_options(workflow: Any) -> dict[str, Any]:
    """Return options with which another Snakemake sees the same study as this one."""
    methods = workflow.deployment_settings.deployment_method
    return {
        "snakefile": workflow.main_snakefile,
        "configfile": list(map(str, workflow.config_settings.configfiles)) or None,
        "config": workflow.config_settings.config_args or None,
        "rerun_triggers": [trigger.item_to_choice() for trigger in workflow.rerun_triggers],
        "software_deployment_method": [method.item_to_choice() for method in methods] or None,
    }
