localrules:
    collect_scores,


rule score:
    input:
        environment_ready(SCORING),
        version="<results>/models/{model}/{applied_to}",
        task="<results>/tasks/{task}",
        files=lambda wildcards: defining_files(wildcards.task),
        adapters=adapters_of,
    output:
        # Updated, not made anew: a cell that is there and still true is not scored again.
        results=update("<results>/scores/{model}/{applied_to}/{task}.json"),
        samples=update("<results>/scores/{model}/{applied_to}/{task}.samples.jsonl"),
    log:
        "<logs>/score/{model}/{applied_to}/{task}.log",
    conda:
        f"../envs/{SCORING}.yaml"
    threads: asks("score", "threads", 1)
    resources:
        gpu=asks("score", "gpu", 1),
        mem_mb=asks("score", "mem_mb", 4000),
        runtime=asks("score", "runtime", 720),
    params:
        settings=lambda wildcards: options(matrix.scoring_settings(config, wildcards.task)),
        cells=lambda wildcards, input: options(cells_to_score(wildcards, input.adapters)),
    shell:
        "$RUN_JOB {resources.gpu} --mem-mb {resources.mem_mb} --"
        " $SCORE_PYTHON $SCRIPTS/score.py --gpus {resources.gpu} --version {input.version} --task {input.task}"
        " --names model={wildcards.model} applied_to={wildcards.applied_to} task={wildcards.task}"
        " {params.settings} {params.cells}"
        " --results {output.results} --samples {output.samples} >{log} 2>&1"


rule collect_scores:
    input:
        results=score_paths(".json"),
        imported=imported_paths(".csv"),
    output:
        "<results>/scores.csv",
    log:
        "<logs>/collect_scores.log",
    conda:
        "../envs/workflow.yaml"
    shell:
        "$WORKFLOW_PYTHON $SCRIPTS/collect_scores.py {input.results} --imported {input.imported}"
        " --output {output} >{log} 2>&1"
