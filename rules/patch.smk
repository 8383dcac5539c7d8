# An existing patch is fetched on the login node; every other patch is trained.
ruleorder: fetch_patch > train_patch


EXISTING_PATCHES = {paths.patch_name(patch): patch for patch in matrix.existing_patches(config)}


rule fetch_patch:
    input:
        files=lambda wildcards: source_files(
            matrix.existing_patches(config)[EXISTING_PATCHES[wildcards.existing]], fetching.ADAPTER
        ),
        base=lambda wildcards: paths.base_of_patch(config, EXISTING_PATCHES[wildcards.existing]),
    output:
        directory("<results>/patches/{existing}"),
    log:
        "<logs>/fetch_patch/{existing}.log",
    wildcard_constraints:
        existing=one_of(EXISTING_PATCHES),
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=asks("fetch_patch", "mem_mb", 2000),
        runtime=asks("fetch_patch", "runtime", 60),
        # No parameter: where a mirror is changes nothing that is fetched.
        hub_mirror=lambda wildcards: options({"hub_mirror": config["hub_mirror"]}),
    params:
        source=lambda wildcards: options(
            stage_settings.fetch_patch_settings(config, EXISTING_PATCHES[wildcards.existing])
        ),
        content=lambda wildcards: mirrored_content(
            matrix.existing_patches(config)[EXISTING_PATCHES[wildcards.existing]], fetching.ADAPTER
        ),
        base=lambda wildcards, input: options({"base": input.base}),
    shell:
        '"$EVAL_PYTHON" "$SCRIPTS/fetch_patch.py" {params.source} {params.base}'
        " {resources.hub_mirror} --output {output:q} >{log:q} 2>&1"


rule train_patch:
    input:
        model="<results>/models/{model}/{trained_on}",
        task="<results>/tasks/{task}",
    output:
        directory("<results>/patches/{model}/{trained_on}/{task}/seed{seed}"),
    log:
        "<logs>/train_patch/{model}/{trained_on}/{task}/seed{seed}.log",
    cache: SHARED
    priority: 1
    conda:
        "../envs/train.yaml"
    threads: asks("train_patch", "threads", 1)
    resources:
        gpu=asks("train_patch", "gpu", 1),
        mem_mb=asks("train_patch", "mem_mb", 4000),
        runtime=asks("train_patch", "runtime", 720),
        # No parameter: how often checkpoints are written changes no patch and redoes none.
        checkpoint_steps=lambda wildcards: stage_settings.patch_settings(config, wildcards.task)[
            "checkpoint_steps"
        ],
    params:
        code=code("train_patch.py"),
        settings=lambda wildcards: options(
            stage_settings.without(
                stage_settings.patch_settings(config, wildcards.task), "checkpoint_steps"
            )
        ),
        # The key of a shared output covers parameters, not wildcards.
        names=lambda wildcards: options(
            {"seed": wildcards.seed, "names": stage_settings.names(wildcards)}
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" {resources.gpu} --mem-mb {resources.mem_mb} --'
        ' "$TRAIN_PYTHON" "$SCRIPTS/train_patch.py" --gpus {resources.gpu} --model {input.model:q} --task {input.task:q}'
        " {params.settings} {params.names} --checkpoint-steps {resources.checkpoint_steps}"
        ' --work "$CHECKPOINTS/train_patch" --output {output:q} >{log:q} 2>&1'
