import json

from portllm.snakemake_hooks import plan_inputs


rule plan:
    log:
        "<logs>/plan.log",
    localrule: True
    # A nested Snakemake lists the jobs: it knows which are cached and which are outdated.
    # Status 141 is a closed pipe (SIGPIPE), as in `snakemake plan | head`, and no failure.
    handover: True
    params:
        python=sys.executable,
        study=lambda wildcards: json.dumps(
            plan_inputs.describe_study(
                config,
                PLACE.results,
                rules._rules,
                has_devices=PRICED.has_devices,
                device_count=device_options.device_count(workflow),
            )
        ),
        same_study=lambda wildcards: options(plan_inputs.study_options(workflow)),
    shell:
        "{params.python:q} -m snakemake --summary {params.same_study} 2>{log:q}"
        ' | {params.python:q} "$SCRIPTS/plan.py" --summary /dev/stdin'
        " --study <(printf %s {params.study:q})"
        " || [ $? -eq 141 ]"
