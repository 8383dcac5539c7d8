rule import_scores:
    input:
        lambda wildcards: unmoved(
            imported_patterns.find_files(config["imported"][wildcards.source])
        ),
    output:
        scores="<results>/imported/{source}.csv",
        files="<results>/imported/{source}.files.csv",
        notes="<results>/imported/{source}.notes.txt",
    log:
        "<logs>/import_scores/{source}.log",
    localrule: True
    conda:
        "../envs/workflow.yaml"
    params:
        code=code("import_scores.py"),
        # The program looks for the files itself: so many names could be too long a command.
        settings=lambda wildcards: options(
            {"settings": stage_settings.imported_settings(config, wildcards.source)}
        ),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/import_scores.py" --name {wildcards.source:q} {params.settings}'
        " --scores {output.scores:q} --files {output.files:q} --notes {output.notes:q} >{log:q} 2>&1"
