localrules:
    plan,


rule plan:
    log:
        "<logs>/plan.log",
    # A nested Snakemake lists the jobs: it knows which are cached and which are outdated.
    # Status 141 is a closed pipe (SIGPIPE), as in `snakemake plan | head`, and no failure.
    handover: True
    params:
        python=sys.executable,
        study=lambda wildcards: json.dumps(described_study()),
        same_study=lambda wildcards: options(same_study()),
    shell:
        "{params.python} -m snakemake --summary {params.same_study} 2>{log}"
        " | {params.python} $SCRIPTS/plan.py --summary /dev/stdin"
        " --study <(printf %s {params.study:q})"
        " || [ $? -eq 141 ]"
