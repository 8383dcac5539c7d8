rule make_task_data:
    input:
        files=lambda wildcards: unmoved(paths.task_definition_files(config, wildcards.task)),
    output:
        directory("<results>/tasks/{task}"),
    log:
        "<logs>/make_task_data/{task}.log",
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: asks("make_task_data", "threads", 1)
    resources:
        mem_mb=asks("make_task_data", "mem_mb", 4000),
        runtime=asks("make_task_data", "runtime", 60),
        # No parameter: where a mirror is changes nothing that is fetched.
        hub_mirror=lambda wildcards: options({"hub_mirror": config["hub_mirror"]}),
    params:
        code=code("make_task_data.py"),
        settings=lambda wildcards: options(
            stage_settings.task_data_settings(config, wildcards.task)
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --credentials --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/make_task_data.py" {params.settings} {resources.hub_mirror}'
        " --output {output:q} >{log:q} 2>&1"
