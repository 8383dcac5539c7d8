localrules:
    make_table,


rule make_table:
    input:
        sources=lambda wildcards: table_inputs(wildcards.table),
        # Found beside the sources, by their names.
        samples=lambda wildcards: item_paths(config["tables"][wildcards.table], ".samples.jsonl"),
        published=lambda wildcards: config["tables"][wildcards.table].get("published", []),
        notes=lambda wildcards: table_notes(wildcards.table),
    output:
        report(
            "<results>/tables/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        "<results>/tables/{table}.md",
        "<results>/tables/{table}.tex",
    log:
        "<logs>/make_table/{table}.log",
    conda:
        "../envs/workflow.yaml"
    params:
        settings=lambda wildcards: options(
            {"settings": matrix.table_settings(config, wildcards.table)}
        ),
    shell:
        "$WORKFLOW_PYTHON $SCRIPTS/make_table.py {input.sources} --notes {input.notes} {params.settings}"
        " --output {output} >{log} 2>&1"
