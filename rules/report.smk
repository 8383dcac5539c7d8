rule make_report:
    input:
        tables=expand("<results>/tables/{table}.md", table=TABLES.with_rows()),
        figures=expand("<results>/figures/{figure}.svg", figure=FIGURES.with_rows()),
        imported=paths.imported_paths(config["imported"], ".csv"),
        sections=unmoved([HERE / "report" / "sections.yaml"]),
        template=unmoved([HERE / "report" / "report.html.j2"]),
    output:
        "<results>/report.html",
    log:
        "<logs>/make_report.log",
    localrule: True
    conda:
        "../envs/workflow.yaml"
    params:
        code=code("make_report.py"),
        settings=lambda wildcards: options({"settings": summary.report_settings(config)}),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/make_report.py" --tables {input.tables:q} --figures {input.figures:q}'
        " --imported {input.imported:q} --sections {input.sections:q} --template {input.template:q} {params.settings}"
        " --output {output:q} >{log:q} 2>&1"
