rule patch:
    input:
        environment_ready("train"),
        model="<results>/models/{model}/{trained_on}",
        task="<results>/tasks/{task}",
    output:
        directory("<results>/patches/{model}/{trained_on}/{task}/seed{seed}"),
    log:
        "<logs>/patch/{model}/{trained_on}/{task}/seed{seed}.log",
    conda:
        "../envs/train.yaml"
    threads: asks("patch", "threads", 1)
    resources:
        gpu=asks("patch", "gpu", 1),
        mem_mb=asks("patch", "mem_mb", 4000),
        runtime=asks("patch", "runtime", 720),
    params:
        settings=lambda wildcards: options(study.patch_settings(config, wildcards.task)),
        work=work_directory("patch"),
    shell:
        "$TRAIN_PYTHON $SCRIPTS/train_patch.py --model {input.model} --task {input.task}"
        " --seed {wildcards.seed} {params.settings} --work {params.work} --output {output}"
        " >{log} 2>&1"
