localrules:
    make_figure,


rule make_figure:
    input:
        sources=lambda wildcards: figure_inputs(wildcards.figure),
        # Found beside the sources, by their names.
        samples=lambda wildcards: item_paths(config["figures"][wildcards.figure], ".samples.jsonl"),
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
    conda:
        "../envs/workflow.yaml"
    params:
        settings=lambda wildcards: options(
            {"settings": matrix.figure_settings(config, wildcards.figure)}
        ),
    shell:
        "$WORKFLOW_PYTHON $SCRIPTS/make_figure.py {input.sources} {params.settings}"
        " --output {output} >{log} 2>&1"
