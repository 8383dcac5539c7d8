rule make_figure:
    input:
        sources=lambda wildcards: FIGURES.sources(wildcards.figure),
        # The program finds these beside the sources, and in the figure's settings.
        samples=lambda wildcards: FIGURES.item_files(wildcards.figure),
        named=lambda wildcards: unmoved(FIGURES.own_files(wildcards.figure)),
    output:
        report(
            "<results>/figures/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        "<results>/figures/{figure}.png",
        "<results>/figures/{figure}.csv",
    log:
        "<logs>/make_figure/{figure}.log",
    localrule: True
    conda:
        "../envs/workflow.yaml"
    params:
        code=lambda wildcards: code("make_figure.py", FIGURES.module(wildcards.figure)),
        settings=lambda wildcards: options({"settings": FIGURES.program_settings(wildcards.figure)}),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/make_figure.py" {input.sources:q} {params.settings}'
        " --output {output:q} >{log:q} 2>&1"
