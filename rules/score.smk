# Scoring runs in the environment of its backend.
SCORING = environments.BACKENDS[config["scoring"]["backend"]]
os.environ["SCORE_PYTHON"] = str(python(SCORING))


envvars:
    "SCORE_PYTHON",


# Computed once: a large study asks for the cells of each job again and again.
CELLS = matrix.cells_by_job(config)


rule score:
    input:
        version="<results>/models/{model}/{applied_to}",
        task="<results>/tasks/{task}",
        files=lambda wildcards: unmoved(paths.task_definition_files(config, wildcards.task)),
        adapters=lambda wildcards: paths.adapter_paths(
            CELLS[wildcards.model, wildcards.applied_to, wildcards.task]
        ),
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
        code=code("score.py"),
        settings=lambda wildcards: options(stage_settings.scoring_settings(config, wildcards.task)),
        cells=lambda wildcards, input: options(
            stage_settings.scored_cells(
                CELLS[wildcards.model, wildcards.applied_to, wildcards.task], input.adapters
            )
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" {resources.gpu} --mem-mb {resources.mem_mb} --'
        ' "$SCORE_PYTHON" "$SCRIPTS/score.py" --gpus {resources.gpu} --version {input.version:q} --task {input.task:q}'
        " --names model={wildcards.model:q} applied_to={wildcards.applied_to:q} task={wildcards.task:q}"
        " {params.settings} {params.cells} --code {params.code:q}"
        " --results {output.results:q} --samples {output.samples:q} >{log:q} 2>&1"


rule collect_scores:
    input:
        results=paths.score_paths(CELLS, ".json"),
        imported=paths.imported_paths(config["imported"], ".csv"),
    output:
        "<results>/scores.csv",
    log:
        "<logs>/collect_scores.log",
    localrule: True
    conda:
        "../envs/workflow.yaml"
    params:
        code=code("collect_scores.py"),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/collect_scores.py" {input.results:q} --imported {input.imported:q}'
        " --output {output:q} >{log:q} 2>&1"
