from snakemake.utils import min_version

min_version("9.27")


report: "report/workflow.rst"


# A study named with --configfile stands by itself; the default study is for when none is named.
if not workflow.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/corpus.smk"
include: "rules/base.smk"
include: "rules/task_data.smk"
include: "rules/patch.smk"
include: "rules/evolve.smk"
include: "rules/transplant.smk"
include: "rules/score.smk"
include: "rules/imported.smk"
include: "rules/analyse.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/report.smk"
include: "rules/plan.smk"


onsuccess:
    PROGRESS.succeeded(
        workflow.pathvars.apply(f"<results>/{name}")
        for name in ("report.html", "tables", "figures", "scores.csv", "scores")
    )


onerror:
    PROGRESS.failed()


rule all:
    default_target: True
    input:
        expand(
            "<results>/tables/{table}.{kind}", table=TABLES.with_rows(), kind=["csv", "md", "tex"]
        ),
        expand(
            "<results>/figures/{figure}.{kind}",
            figure=FIGURES.with_rows(),
            kind=["svg", "png", "csv"],
        ),
        "<results>/report.html",
        paths.merged_paths(config),
