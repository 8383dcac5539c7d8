localrules:
    table,


rule table:
    input:
        lambda wildcards: table_inputs(wildcards.table),
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
        "<logs>/table/{table}.log",
    conda:
        "../envs/workflow.yaml"
    params:
        settings=lambda wildcards: options(
            {"settings": study.table_settings(config, wildcards.table)}
        ),
    shell:
        "$WORKFLOW_PYTHON $SCRIPTS/make_table.py {input} {params.settings}"
        " --output {output} >{log} 2>&1"
