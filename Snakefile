from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


report: "report/workflow.rst"


# Without --configfile the study is the working directory's config.yaml, or else the default study.
# A module without `config:` runs the default study.
if not config or not workflow.configfiles:
    study_file = Path("config.yaml")
    if not study_file.exists() or not workflow.modifier.is_main_snakefile():
        study_file = Path(workflow.current_basedir.get_path_or_uri(secret_free=True), study_file)

    configfile: str(study_file)


include: "rules/common.smk"


# The first rule is the default target. `default_target` would also be that of an importing workflow.
rule all:
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
    PROGRESS.failed(not_made.report(workflow, PLACE, CELLS))
