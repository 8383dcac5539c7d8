localrules:
    fetch_patch,


# A patch that someone brings is fetched, on the login node; every other one is trained.
ruleorder: fetch_patch > patch


rule fetch_patch:
    input:
        environment_ready("eval"),
    output:
        directory("<results>/patches/{existing}"),
    log:
        "<logs>/fetch_patch/{existing}.log",
    wildcard_constraints:
        existing=one_of(EXISTING_PATCHES),
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=asks("patch", "mem_mb", 2000),
        runtime=asks("patch", "runtime", 60),
    params:
        source=lambda wildcards: options(existing_patch(wildcards.existing)),
    shell:
        "$EVAL_PYTHON $SCRIPTS/fetch_patch.py {params.source} --output {output} >{log} 2>&1"


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
        # No parameter: how often checkpoints are written changes no patch and redoes none.
        checkpoint_steps=lambda wildcards: study.patch_settings(config, wildcards.task)[
            "checkpoint_steps"
        ],
    params:
        settings=lambda wildcards: options(
            study.without(study.patch_settings(config, wildcards.task), "checkpoint_steps")
        ),
        work=work_directory("patch"),
    shell:
        "$TRAIN_PYTHON $SCRIPTS/train_patch.py --model {input.model} --task {input.task}"
        " --seed {wildcards.seed} {params.settings}"
        " --checkpoint-steps {resources.checkpoint_steps} --work {params.work} --output {output}"
        " --names model={wildcards.model} trained_on={wildcards.trained_on} task={wildcards.task}"
        " seed={wildcards.seed} >{log} 2>&1"
