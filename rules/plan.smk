localrules:
    plan,


rule plan:
    log:
        "<logs>/plan.log",
    # Another Snakemake, told only to list the jobs: it knows what is cached and what is outdated.
    handover: True
    params:
        python=sys.executable,
        study=lambda wildcards: json.dumps(described_study()),
        same_study=lambda wildcards: options(same_study()),
    shell:
        "{params.python} -m snakemake --summary {params.same_study} 2>{log}"
        " | {params.python} $SCRIPTS/plan.py --summary /dev/stdin"
        " --study <(printf %s {params.study:q})"
