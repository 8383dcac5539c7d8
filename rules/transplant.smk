rule transplant:
    input:
        patch="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        version="<results>/models/{model}/{applied_to}",
    output:
        directory("<results>/ports/{model}/{trained_on}/{applied_to}/{task}/{method}/seed{seed}"),
    log:
        "<logs>/transplant/{model}/{trained_on}/{applied_to}/{task}/{method}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("transplant", "threads", 1)
    resources:
        mem_mb=asks("transplant", "mem_mb", 2000),
        runtime=asks("transplant", "runtime", 30),
    params:
        code=code("transplant.py"),
        method=lambda wildcards: options(stage_settings.method_settings(config, wildcards.method)),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/transplant.py" --patch {input.patch:q} --version {input.version:q}'
        " {params.method} --adapter {output:q} --names model={wildcards.model:q}"
        " trained_on={wildcards.trained_on:q} applied_to={wildcards.applied_to:q}"
        " task={wildcards.task:q} method={wildcards.method:q} seed={wildcards.seed:q} >{log:q} 2>&1"


rule merge:
    input:
        adapter=lambda wildcards: paths.adapter_path(matrix.Cell(**wildcards)),
        version="<results>/models/{model}/{applied_to}",
    output:
        directory("<results>/merged/{model}/{trained_on}/{applied_to}/{task}/{method}/seed{seed}"),
    log:
        "<logs>/merge/{model}/{trained_on}/{applied_to}/{task}/{method}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("merge", "threads", 2)
    resources:
        mem_mb=asks("merge", "mem_mb", 2000),
        runtime=asks("merge", "runtime", 60),
    params:
        code=code("transplant.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/transplant.py" --patch {input.adapter:q} --version {input.version:q}'
        " --merged {output:q} >{log:q} 2>&1"
