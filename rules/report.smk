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
        settings=options({"settings": summary.report_settings(config)}),
    shell:
        "$WORKFLOW_PYTHON $SCRIPTS/make_report.py --tables {input.tables} --figures {input.figures}"
        " --imported {input.imported} --sections {input.sections} --template {input.template} {params.settings}"
        " --output {output} >{log} 2>&1"
