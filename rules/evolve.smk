rule evolve:
    input:
        environment_ready("train"),
        model=lambda wildcards: "<results>/models/{}/{}".format(
            wildcards.model, config["evolutions"][wildcards.version]["from"]
        ),
        corpus=lambda wildcards: "<results>/corpora/{corpus}.jsonl".format(
            **config["evolutions"][wildcards.version]
        ),
        recipe=lambda wildcards: study.recipe_files(config, wildcards.version),
    output:
        directory("<results>/models/{model}/{version}"),
    log:
        "<logs>/evolve/{model}/{version}.log",
    wildcard_constraints:
        version=one_of(config["evolutions"]),
    conda:
        "../envs/train.yaml"
    threads: asks("evolve", "threads", 1)
    resources:
        gpu=asks("evolve", "gpu", 1),
        mem_mb=asks("evolve", "mem_mb", 6000),
        runtime=asks("evolve", "runtime", 1440),
    params:
        settings=lambda wildcards: options(study.evolution_settings(config, wildcards.version)),
        work=work_directory("evolve"),
    shell:
        "$TRAIN_PYTHON $SCRIPTS/evolve.py --model {input.model} --corpus {input.corpus}"
        " --recipe {input.recipe} {params.settings} --work {params.work} --output {output}"
        " >{log} 2>&1"
