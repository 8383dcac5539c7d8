import json
import os
import re
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

HERE = Path(os.path.relpath(workflow.basedir))
ENVIRONMENTS = HERE / ".venvs"
sys.path.insert(0, str(Path(workflow.basedir, "workflow_scripts")))

from portllm.data import fetching
from portllm.jobs import devices, supervision
from portllm.planning import estimates, requests
from portllm.snakemake_hooks import clusters, environments, output_cache, progress, run_guard
from portllm.study import config as configuration
from portllm.study import imported_patterns, matrix, paths, stage_settings, summary
from portllm.command_line import options
from portllm.errors import InputError

WITH_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method


def python(environment):
    """The interpreter of an environment; conda puts its own first on the PATH."""
    return "python" if WITH_CONDA else ENVIRONMENTS / environment / "bin" / "python"


# Shell commands name interpreters by these variables, not by paths in their params: the choice
# between virtual environments and conda changes no result and must not redo any work.
os.environ["SCRIPTS"] = str(HERE / "workflow_scripts")
os.environ["TRAIN_PYTHON"] = str(python("train"))
os.environ["EVAL_PYTHON"] = str(python("eval"))
os.environ["WORKFLOW_PYTHON"] = "python" if WITH_CONDA else sys.executable
# Where trainings keep checkpoints: outside their outputs, which are deleted when a job fails.
os.environ["CHECKPOINTS"] = workflow.pathvars.apply("<results>/checkpoints")

# Runs a command on devices that no other job holds; jobs that are not started by it see none. It
# also watches the command, on 0 devices too: what it died of, and whether the run is still there.
os.environ["RUN_JOB"] = "{WORKFLOW_PYTHON} {SCRIPTS}/run_job.py".format(**os.environ)
os.environ.update(devices.hidden(os.environ))
os.environ[supervision.SNAKEMAKE_PID] = str(os.getpid())


envvars:
    "SCRIPTS",
    "TRAIN_PYTHON",
    "EVAL_PYTHON",
    "WORKFLOW_PYTHON",
    "CHECKPOINTS",
    "RUN_JOB",


def task_library():
    """The folder of lm-eval's own tasks; None before the eval environment is built."""
    return next(ENVIRONMENTS.glob("eval/lib/python*/site-packages/lm_eval/tasks"), None)


def device_limit():
    """Devices that --resources gpu=N allows on this machine; a cluster has limits of its own."""
    limit = workflow.global_resources.get("gpu")
    is_ours = workflow.local_exec and workflow.is_main_process
    return limit.value if is_ours and limit is not None else None


def devices_by_rule():
    """Devices that --set-resources RULE:gpu=N asks for; numbers that are computed are left out."""
    asked = workflow.resource_settings.overwrite_resources.items()
    given = [(name, settings.get("gpu")) for name, settings in asked]
    return {name: gpu.value for name, gpu in given if gpu and not gpu.is_evaluable()}


def has_devices():
    """Whether jobs find devices to compute on; of a cluster's nodes it is taken for granted."""
    return bool(devices.pool(os.environ)) or not workflow.local_exec


try:
    if workflow.workflow_settings.cache is not None:
        output_cache.prepare(os.environ, HERE / "workflow_scripts", with_devices=has_devices())
    configuration.load(
        config,
        schema=HERE / "config" / "schema.yaml",
        files=[Path(file) for file in workflow.configfiles],
        task_library=task_library(),
        device_limit=device_limit(),
    )
    RECIPES = configuration.recipes(config)
    configuration.check_packages(RECIPES, HERE / "envs" / "train.txt")
    PRICED = estimates.PricedStudy(
        config,
        results=Path(workflow.pathvars.apply("<results>")),
        known=estimates.hub_models(HERE / "resources" / "models"),
        recipes=RECIPES,
    )
    requests.check_devices(PRICED, devices_by_rule(), device_limit())
except InputError as error:
    logger.error(f"error: {error}")
    sys.exit(1)

# One run at a time uses the results. Damaged results are made again. Signals stop the jobs.
run_guard.attend(workflow, logger)
PROGRESS = progress.follow(workflow, logger, requests.minutes_by_rule(PRICED))
# Jobs that a killed run left on a cluster are not submitted again.
clusters.attend(workflow)
if not WITH_CONDA:
    environments.attend(
        workflow,
        logger,
        environments.required(config),
        checkout=HERE,
        logs=Path(workflow.pathvars.apply("<logs>")),
        after_building=lambda: configuration.check_tasks(
            config, task_library(), workflow.configfiles
        ),
    )

# Named by a rule whose outputs several checkouts can share (`--cache`). Said only where it is
# asked for, or Snakemake would advertise it for each rule of each run.
SHARED = workflow.workflow_settings.cache is not None


# Scores are made in the environment of what runs the models.
SCORING = environments.BACKENDS[config["scoring"]["backend"]]
os.environ["SCORE_PYTHON"] = str(python(SCORING))


envvars:
    "SCORE_PYTHON",


def asks(rule, name, default):
    """What a rule's jobs ask for: the config's word, else what follows from their model."""
    return lambda wildcards, attempt: requests.wanted(
        PRICED, rule, dict(wildcards), name, default, attempt
    )


def one_of(names):
    """A wildcard's pattern that matches these names only."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(config["models"]),
    task=one_of(config["tasks"]),
    corpus=one_of(config["corpora"]),
    method=one_of(config["methods"]),
    table=one_of(config["tables"]),
    figure=one_of(config["figures"]),
    source=one_of(config["imported"]),
    seed="[0-9]+",


def source_files(source, kept):
    """The local files that a model or a patch is linked from; none where it comes from the hub."""
    return fetching.local_files(source, config["hub_mirror"], kept)


def table_notes(table):
    """Notes on imported scores, for tables of scores."""
    settings = config["tables"][table]
    if settings["kind"] in (
        "versions",
        "norms",
        "efficiency",
        "costs",
        "provenance",
        *matrix.MEASURED,
    ):
        return []
    return paths.imported_paths(matrix.imported_sources(config, settings), ".notes.txt")


def with_rows(kind):
    """Names of the study's tables or figures that have something to show."""
    return [name for name, settings in config[kind].items() if matrix.has_rows(config, settings)]


def item_paths(settings, suffix):
    """Results, or items, of the scoring jobs whose items a table or figure compares."""
    return paths.score_paths(matrix.jobs_with_items(config, settings), suffix)


def table_inputs(table):
    """What a table is made from, by its kind."""
    settings = config["tables"][table]
    match settings["kind"]:
        case "main" | "recovery":
            return [paths.SCORES, *item_paths(settings, ".json")]
        case "comparisons" | "seeds":
            return item_paths(settings, ".json")
        case "versions":
            return [paths.movement_path(*place) for place in matrix.moved_versions(config)]
        case "norms":
            return [
                paths.measurement_path("norms", cell)
                for cell in matrix.compared_cells(config, settings)
            ]
        case "geometry":
            return [
                paths.measurement_path("geometry", cell)
                for cell in matrix.measured_cells(config, settings)
            ]
        case "efficiency":
            compared = matrix.compared_cells(config, settings)
            natives = [paths.patch_path(matrix.native_patch(cell)) for cell in compared]
            return [*natives, *map(paths.adapter_path, compared)]
        case "costs" | "provenance":
            return paths.artefact_paths(config)
        case _:
            return [paths.SCORES]


def figure_inputs(figure):
    """What a figure is made from, by its kind."""
    settings = config["figures"][figure]
    if settings["kind"] in matrix.MEASURED:
        cells = matrix.measured_cells(config, settings)
        return [paths.measurement_path(settings["kind"], cell) for cell in cells]
    return [paths.SCORES, *item_paths(settings, ".json")]


def described_study():
    """The study and, of each rule, what the plan prices: its outputs and what its jobs ask for."""
    rules = [
        {
            "name": rule.name,
            "outputs": [str(path) for path in rule.output],
            "gpu": "gpu" in rule.resources,
            "temporary": any(path.flags.get("temp", False) for path in rule.output),
        }
        for rule in workflow.rules
        if rule.output
    ]
    return {"config": config, "results": workflow.pathvars.apply("<results>"), "rules": rules}


def same_study():
    """Options with which another Snakemake sees the same study as this one."""
    return {
        "snakefile": workflow.main_snakefile,
        "configfile": list(workflow.configfiles) or None,
        "config": workflow.config_settings.config_args or None,
        "rerun_triggers": [trigger.item_to_choice() for trigger in workflow.rerun_triggers],
        "software_deployment_method": "conda" if WITH_CONDA else None,
    }
