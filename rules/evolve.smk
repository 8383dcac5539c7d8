rule preprocess:
    input:
        model=lambda wildcards: paths.parent_path(config, **wildcards),
        corpus=lambda wildcards: paths.corpus_path(
            config["evolutions"][wildcards.version]["corpus"]
        ),
        recipe=lambda wildcards: unmoved(stage_settings.recipe_files(config, wildcards.version)),
    output:
        temp(directory("<results>/prepared/{model}/{version}")),
    log:
        "<logs>/preprocess/{model}/{version}.log",
    wildcard_constraints:
        version=one_of(stage_settings.preprocessed_evolutions(config)),
    conda:
        "../envs/train.yaml"
    threads: asks("preprocess", "threads", 1)
    resources:
        mem_mb=asks("preprocess", "mem_mb", 8000),
        runtime=asks("preprocess", "runtime", 120),
    params:
        code=code("evolve.py", output_cache.PLUGIN),
        settings=lambda wildcards: options(
            stage_settings.evolution_settings(config, wildcards.version)
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --mem-mb {resources.mem_mb} --'
        ' "$TRAIN_PYTHON" "$SCRIPTS/evolve.py" --model {input.model:q} --corpus {input.corpus:q}'
        ' --recipe {input.recipe:q} {params.settings} --work "$CHECKPOINTS/evolve"'
        " --preprocess-only --output {output:q} >{log:q} 2>&1"


rule evolve:
    input:
        model=lambda wildcards: paths.parent_path(config, **wildcards),
        corpus=lambda wildcards: paths.corpus_path(
            config["evolutions"][wildcards.version]["corpus"]
        ),
        recipe=lambda wildcards: unmoved(stage_settings.recipe_files(config, wildcards.version)),
        prepared=lambda wildcards: paths.prepared_paths(config, **wildcards),
    output:
        directory("<results>/models/{model}/{version}"),
    log:
        "<logs>/evolve/{model}/{version}.log",
    wildcard_constraints:
        version=one_of(config["evolutions"]),
    cache: SHARED
    # Whole chains wait for it.
    priority: 2
    conda:
        "../envs/train.yaml"
    threads: asks("evolve", "threads", 1)
    resources:
        gpu=asks("evolve", "gpu", 1),
        mem_mb=asks("evolve", "mem_mb", 6000),
        runtime=asks("evolve", "runtime", 1440),
    params:
        code=code("evolve.py", output_cache.PLUGIN),
        settings=lambda wildcards: options(
            stage_settings.evolution_settings(config, wildcards.version)
        ),
        # Not used: the recipes' order, which their files' contents do not tell, for the key of a
        # shared output.
        recipe=lambda wildcards: RECIPES[wildcards.version],
        # Not used either: a recipe says how large the batch is on each device.
        devices=lambda wildcards: asks("evolve", "gpu", 1)(wildcards, attempt=1),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" {resources.gpu} --mem-mb {resources.mem_mb} --'
        ' "$TRAIN_PYTHON" "$SCRIPTS/evolve.py" --model {input.model:q} --corpus {input.corpus:q}'
        " --recipe {input.recipe:q} {params.settings} --prepared {input.prepared:q}"
        ' --work "$CHECKPOINTS/evolve" --output {output:q} >{log:q} 2>&1'
