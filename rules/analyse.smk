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
    threads: 1
    resources:
        mem_mb=asks("movement", "mem_mb", 2000),
        runtime=asks("movement", "runtime", 60),
    shell:
        "$EVAL_PYTHON $SCRIPTS/measure_movement.py --base {input.base}"
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
    threads: 1
    resources:
        mem_mb=asks("norms", "mem_mb", 2000),
        runtime=asks("norms", "runtime", 60),
    shell:
        "$EVAL_PYTHON $SCRIPTS/measure_norms.py --version {input.version}"
        " --ported {input.ported} --native {input.native} --output {output}"
        " --names model={wildcards.model} version={wildcards.applied_to}"
        " trained_on={wildcards.trained_on} task={wildcards.task} seed={wildcards.seed}"
        " >{log} 2>&1"
