"""Describe the running workflow to the processes behind `snakemake plan`."""

from typing import Any


def describe_study(workflow: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the study and, of each rule, what the plan prices: its outputs and resources."""
    rules = [
        {
            "name": rule.name,
            "outputs": [str(path) for path in rule.output],
            "gpu": "gpu" in rule.resources,
            "temporary": any(path.flags.get("temp", False) for path in rule.output),
        }
        for rule in workflow.rules
        if rule.output
    ]
    return {"config": config, "results": workflow.pathvars.apply("<results>"), "rules": rules}


def study_options(workflow: Any, *, with_conda: bool) -> dict[str, Any]:
    """Return the options with which another Snakemake process sees the same study."""
    return {
        "snakefile": workflow.main_snakefile,
        "configfile": list(workflow.configfiles) or None,
        "config": workflow.config_settings.config_args or None,
        "rerun_triggers": [trigger.item_to_choice() for trigger in workflow.rerun_triggers],
        "software_deployment_method": "conda" if with_conda else None,
    }
