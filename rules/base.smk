# A model trained from scratch and a release that is an adapter are computed; everything else is
# fetched, on the login node.
ruleorder: pretrain > fetch_model
ruleorder: merge_release > fetch_model


# A release may be an adapter for one model and a checkpoint for another.
OF_ADAPTER_RELEASES = {
    "model": "|".join(
        f"{re.escape(model)}(?=/{re.escape(version)}$)"
        for model, version in matrix.adapter_releases(config)
    )
    or "(?!)"
}


rule pretrain:
    input:
        corpus=lambda wildcards: (
            "<results>/corpora/{corpus}.jsonl".format(
                **config["models"][wildcards.model]["base"]["from_scratch"]
            )
        ),
    output:
        directory("<results>/models/{model}/base"),
    log:
        "<logs>/pretrain/{model}.log",
    wildcard_constraints:
        model=one_of(matrix.models_from_scratch(config)),
    cache: SHARED
    conda:
        "../envs/eval.yaml"
    threads: asks("pretrain", "threads", 1)
    resources:
        gpu=asks("pretrain", "gpu", 1),
        mem_mb=asks("pretrain", "mem_mb", 4000),
        runtime=asks("pretrain", "runtime", 60),
    params:
        code=code("pretrain.py"),
        settings=lambda wildcards: options(
            stage_settings.pretraining_settings(config, wildcards.model)
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" {resources.gpu} --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/pretrain.py" --corpus {input.corpus:q} {params.settings}'
        " --output {output:q} >{log:q} 2>&1"


rule fetch_model:
    input:
        files=lambda wildcards: source_files(
            matrix.sources(config, wildcards.model)[wildcards.version], fetching.MODEL
        ),
    output:
        directory("<results>/models/{model}/{version}"),
    log:
        "<logs>/fetch_model/{model}/{version}.log",
    wildcard_constraints:
        version=one_of(matrix.obtained_versions(config)),
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: asks("fetch_model", "threads", 1)
    resources:
        mem_mb=asks("fetch_model", "mem_mb", 4000),
        runtime=asks("fetch_model", "runtime", 240),
        # No parameter: where a mirror is changes nothing that is fetched.
        hub_mirror=lambda wildcards: options({"hub_mirror": config["hub_mirror"]}),
    params:
        source=lambda wildcards: options(matrix.sources(config, wildcards.model)[wildcards.version]),
        content=lambda wildcards: mirrored_content(
            matrix.sources(config, wildcards.model)[wildcards.version], fetching.MODEL
        ),
    shell:
        '"$EVAL_PYTHON" "$SCRIPTS/fetch_model.py" {params.source} {resources.hub_mirror}'
        " --output {output:q} >{log:q} 2>&1"


rule fetch_update:
    input:
        files=lambda wildcards: source_files(
            matrix.adapter_releases(config)[tuple(wildcards)]["adapter"], fetching.ADAPTER
        ),
        base=lambda wildcards: paths.parent_path(config, **wildcards),
    output:
        directory("<results>/updates/{model}/{version}"),
    log:
        "<logs>/fetch_update/{model}/{version}.log",
    wildcard_constraints:
        **OF_ADAPTER_RELEASES,
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=asks("fetch_update", "mem_mb", 2000),
        runtime=asks("fetch_update", "runtime", 60),
        # No parameter: where a mirror is changes nothing that is fetched.
        hub_mirror=lambda wildcards: options({"hub_mirror": config["hub_mirror"]}),
    params:
        source=lambda wildcards: options(stage_settings.fetch_update_settings(config, **wildcards)),
        content=lambda wildcards: mirrored_content(
            matrix.adapter_releases(config)[tuple(wildcards)]["adapter"], fetching.ADAPTER
        ),
    shell:
        '"$EVAL_PYTHON" "$SCRIPTS/fetch_patch.py" {params.source} --base {input.base:q}'
        " {resources.hub_mirror} --output {output:q} >{log:q} 2>&1"


rule merge_release:
    input:
        adapter="<results>/updates/{model}/{version}",
        parent=lambda wildcards: paths.parent_path(config, **wildcards),
    output:
        directory("<results>/models/{model}/{version}"),
    log:
        "<logs>/merge_release/{model}/{version}.log",
    wildcard_constraints:
        **OF_ADAPTER_RELEASES,
    # Versions of a chain wait for it.
    priority: 2
    conda:
        "../envs/eval.yaml"
    threads: asks("merge_release", "threads", 2)
    resources:
        mem_mb=asks("merge_release", "mem_mb", 2000),
        runtime=asks("merge_release", "runtime", 60),
    params:
        code=code("transplant.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/transplant.py" --patch {input.adapter:q} --version {input.parent:q}'
        " --merged {output:q} >{log:q} 2>&1"
