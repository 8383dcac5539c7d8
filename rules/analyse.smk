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
        mem_mb=asks("analyse", "mem_mb", 2000),
        runtime=asks("analyse", "runtime", 60),
    shell:
        "$EVAL_PYTHON $SCRIPTS/measure_movement.py --base {input.base}"
        " --version {input.version} --model-name {wildcards.model}"
        " --version-name {wildcards.version} --output {output} >{log} 2>&1"
