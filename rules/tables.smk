rule make_table:
    input:
        sources=lambda wildcards: TABLES.sources(wildcards.table),
        # The program finds these beside the sources, and in the table's settings.
        samples=lambda wildcards: TABLES.item_files(wildcards.table),
        named=lambda wildcards: unmoved(TABLES.own_files(wildcards.table)),
        notes=lambda wildcards: TABLES.note_files(wildcards.table),
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
    localrule: True
    conda:
        "../envs/workflow.yaml"
    params:
        code=lambda wildcards: code("make_table.py", TABLES.module(wildcards.table)),
        settings=lambda wildcards: options({"settings": TABLES.program_settings(wildcards.table)}),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/make_table.py" {input.sources:q} --notes {input.notes:q} {params.settings}'
        " --output {output:q} >{log:q} 2>&1"
