rule movement:
    input:
        environment_ready("eval"),
        base="<results>/models/{model}/base",
        version="<results>/models/{model}/{version}",
    output:
        "<results>/analysis/{model}/{version}/movement.json",
    log:
        "<logs>/movement/{model}/{version}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("movement", "threads", 1)
    resources:
        mem_mb=asks("movement", "mem_mb", 2000),
        runtime=asks("movement", "runtime", 60),
    shell:
        "$ON_GPUS 0 --mem-mb {resources.mem_mb} --"
        " $EVAL_PYTHON $SCRIPTS/measure_movement.py --base {input.base}"
        " --version {input.version}"
        " --names model={wildcards.model} version={wildcards.version} --output {output} >{log} 2>&1"


rule norms:
    input:
        environment_ready("eval"),
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
    output:
        "<results>/analysis/{model}/{applied_to}/norms/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/norms/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("norms", "threads", 1)
    resources:
        mem_mb=asks("norms", "mem_mb", 2000),
        runtime=asks("norms", "runtime", 60),
    shell:
        "$ON_GPUS 0 --mem-mb {resources.mem_mb} --"
        " $EVAL_PYTHON $SCRIPTS/measure_norms.py --version {input.version}"
        " --ported {input.ported} --native {input.native} --output {output}"
        " --names model={wildcards.model} version={wildcards.applied_to}"
        " trained_on={wildcards.trained_on} task={wildcards.task} seed={wildcards.seed}"
        " >{log} 2>&1"


rule geometry:
    input:
        environment_ready("eval"),
        base="<results>/models/{model}/{trained_on}",
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
    output:
        "<results>/analysis/{model}/{applied_to}/geometry/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/geometry/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("geometry", "threads", 1)
    resources:
        mem_mb=asks("geometry", "mem_mb", 2000),
        runtime=asks("geometry", "runtime", 60),
    shell:
        "$ON_GPUS 0 --mem-mb {resources.mem_mb} --"
        " $EVAL_PYTHON $SCRIPTS/measure_geometry.py --base {input.base} --version {input.version}"
        " --ported {input.ported} --native {input.native} --output {output}"
        " --names model={wildcards.model} version={wildcards.applied_to}"
        " trained_on={wildcards.trained_on} task={wildcards.task} seed={wildcards.seed}"
        " >{log} 2>&1"


rule loss_slice:
    input:
        environment_ready("eval"),
        version="<results>/models/{model}/{applied_to}",
        ported="<results>/patches/{model}/{trained_on}/{task}/seed{seed}",
        native="<results>/patches/{model}/{applied_to}/{task}/seed{seed}",
        task="<results>/tasks/{task}",
        files=lambda wildcards: defining_files(wildcards.task),
    output:
        "<results>/analysis/{model}/{applied_to}/loss_slices/{trained_on}/{task}/seed{seed}.json",
    log:
        "<logs>/loss_slice/{model}/{applied_to}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("loss_slice", "threads", 1)
    resources:
        gpu=asks("loss_slice", "gpu", 1),
        mem_mb=asks("loss_slice", "mem_mb", 4000),
        runtime=asks("loss_slice", "runtime", 720),
    params:
        settings=lambda wildcards: options(matrix.loss_slice_settings(config, wildcards.task)),
    shell:
        "$ON_GPUS {resources.gpu} --mem-mb {resources.mem_mb} --"
        " $EVAL_PYTHON $SCRIPTS/measure_loss_slice.py --version {input.version}"
        " --carried {input.ported} --native {input.native} --task {input.task} {params.settings}"
        " --names model={wildcards.model} version={wildcards.applied_to}"
        " trained_on={wildcards.trained_on} task={wildcards.task} seed={wildcards.seed}"
        " --output {output} >{log} 2>&1"
