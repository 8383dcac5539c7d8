localrules:
    environment,


rule environment:
    input:
        HERE / "envs" / "{environment}.txt",
    output:
        ENVIRONMENTS / "{environment}.ready",
    log:
        "<logs>/environment/{environment}.log",
    wildcard_constraints:
        environment="train|eval|vllm",
    # Never used: with conda there is nothing to make. It tells the linter where the tools come from.
    conda:
        "../envs/workflow.yaml"
    message:
        "Making the {wildcards.environment} environment (once, about a minute)"
    shell:
        "$SCRIPTS/../envs/make.sh {wildcards.environment} >{log} 2>&1"
