import json


localrules:
    plan,


def described_study():
    """The study and, of each rule, what the plan prices: its outputs and what its jobs ask for."""
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


def same_study():
    """Options with which another Snakemake sees the same study as this one."""
    return {
        "snakefile": workflow.main_snakefile,
        "configfile": list(workflow.configfiles) or None,
        "config": workflow.config_settings.config_args or None,
        "rerun_triggers": [trigger.item_to_choice() for trigger in workflow.rerun_triggers],
        "software_deployment_method": "conda" if WITH_CONDA else None,
    }


rule plan:
    log:
        "<logs>/plan.log",
    # A nested Snakemake lists the jobs: it knows which are cached and which are outdated.
    # Status 141 is a closed pipe (SIGPIPE), as in `snakemake plan | head`, and no failure.
    handover: True
    params:
        python=sys.executable,
        study=lambda wildcards: json.dumps(described_study()),
        same_study=lambda wildcards: options(same_study()),
    shell:
        "{params.python} -m snakemake --summary {params.same_study} 2>{log}"
        " | {params.python} $SCRIPTS/plan.py --summary /dev/stdin"
        " --study <(printf %s {params.study:q})"
        " || [ $? -eq 141 ]"
