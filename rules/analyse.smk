rule measure_movement:
    input:
        base="<results>/models/{model}/base",
        version="<results>/models/{model}/{version}",
    output:
        "<results>/analysis/{model}/{version}/movement.json",
    log:
        "<logs>/measure_movement/{model}/{version}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("measure_movement", "threads", 1)
    resources:
        mem_mb=asks("measure_movement", "mem_mb", 2000),
        runtime=asks("measure_movement", "runtime", 60),
    params:
        code=code("measure_movement.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/measure_movement.py" --base {input.base:q}'
        " --version {input.version:q}"
        " --names model={wildcards.model:q} version={wildcards.version:q} --output {output:q} >{log:q} 2>&1"


rule measure_norms:
    input:
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
    output:
        "<results>/analysis/{model}/{applied_to}/norms/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/measure_norms/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("measure_norms", "threads", 1)
    resources:
        mem_mb=asks("measure_norms", "mem_mb", 2000),
        runtime=asks("measure_norms", "runtime", 60),
    params:
        code=code("measure_norms.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/measure_norms.py" --version {input.version:q}'
        " --ported {input.ported:q} --native {input.native:q} --output {output:q}"
        " --names model={wildcards.model:q} version={wildcards.applied_to:q}"
        " trained_on={wildcards.trained_on:q} task={wildcards.task:q} seed={wildcards.seed:q}"
        " >{log:q} 2>&1"


rule measure_geometry:
    input:
        base="<results>/models/{model}/{trained_on}",
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
    output:
        "<results>/analysis/{model}/{applied_to}/geometry/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/measure_geometry/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("measure_geometry", "threads", 1)
    resources:
        mem_mb=asks("measure_geometry", "mem_mb", 2000),
        runtime=asks("measure_geometry", "runtime", 60),
    params:
        code=code("measure_geometry.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/measure_geometry.py" --base {input.base:q} --version {input.version:q}'
        " --ported {input.ported:q} --native {input.native:q} --output {output:q}"
        " --names model={wildcards.model:q} version={wildcards.applied_to:q}"
        " trained_on={wildcards.trained_on:q} task={wildcards.task:q} seed={wildcards.seed:q}"
        " >{log:q} 2>&1"


rule measure_loss_slice:
    input:
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
        task="<results>/tasks/{task}",
        files=lambda wildcards: unmoved(paths.task_definition_files(config, wildcards.task)),
    output:
        "<results>/analysis/{model}/{applied_to}/loss_slices/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/measure_loss_slice/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("measure_loss_slice", "threads", 1)
    resources:
        gpu=asks("measure_loss_slice", "gpu", 1),
        mem_mb=asks("measure_loss_slice", "mem_mb", 4000),
        runtime=asks("measure_loss_slice", "runtime", 720),
    params:
        code=code("measure_loss_slice.py"),
        settings=lambda wildcards: options(
            stage_settings.loss_slice_settings(config, wildcards.task)
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" {resources.gpu} --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/measure_loss_slice.py" --version {input.version:q}'
        " --carried {input.ported:q} --native {input.native:q} --task {input.task:q} {params.settings}"
        " --names model={wildcards.model:q} version={wildcards.applied_to:q}"
        " trained_on={wildcards.trained_on:q} task={wildcards.task:q} seed={wildcards.seed:q}"
        " --output {output:q} >{log:q} 2>&1"
