import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.logging import logger

HERE = Path(os.path.relpath(workflow.basedir))
ENVIRONMENTS = HERE / ".venvs"
sys.path.insert(0, str(Path(workflow.basedir, "workflow_scripts")))

from portllm import config as configuration
from portllm import clusters, study, task_files
from portllm.command_line import options
from portllm.errors import InputError

WITH_CONDA = any(
    method.value == "conda" for method in workflow.deployment_settings.deployment_method
)


def python(environment):
    """The interpreter of an environment; conda puts its own first on the PATH."""
    return "python" if WITH_CONDA else ENVIRONMENTS / environment / "bin" / "python"


# Shell commands name interpreters by these variables, not by paths in their params: the choice
# between virtual environments and conda changes no result and must not redo any work.
os.environ["SCRIPTS"] = str(HERE / "workflow_scripts")
os.environ["TRAIN_PYTHON"] = str(python("train"))
os.environ["EVAL_PYTHON"] = str(python("eval"))
os.environ["WORKFLOW_PYTHON"] = "python" if WITH_CONDA else sys.executable


envvars:
    "SCRIPTS",
    "TRAIN_PYTHON",
    "EVAL_PYTHON",
    "WORKFLOW_PYTHON",


# None before the eval environment is made; the task-data stage then says what is wrong.
TASK_LIBRARY = next(ENVIRONMENTS.glob("eval/lib/python*/site-packages/lm_eval/tasks"), None)

try:
    configuration.load(
        config,
        schema=HERE / "config" / "schema.yaml",
        files=[Path(file) for file in workflow.configfiles],
        task_library=TASK_LIBRARY,
    )
except InputError as error:
    logger.error(f"error: {error}")
    sys.exit(1)

# Jobs that a killed run left on a cluster are not submitted again.
clusters.attend(workflow)


def environment_ready(environment):
    """Input of every rule that uses an environment. A changed pin does not redo its work."""
    return [] if WITH_CONDA else ancient(ENVIRONMENTS / f"{environment}.ready")


def asks(stage, name, default):
    """What a job of a stage asks for: the config's word, else the default."""
    return config["resources"].get(stage, {}).get(name, default)


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
    seed="[0-9]+",


def work_directory(stage):
    """Where a stage keeps checkpoints: outside its outputs, which are deleted when a job fails."""
    return workflow.pathvars.apply(f"<results>/checkpoints/{stage}")


def corpus_path(corpus):
    return f"<results>/corpora/{corpus}.jsonl"


def version_path(model, version):
    return f"<results>/models/{model}/{version}"


def parent_of(version):
    return config["evolutions"][version]["from"]


def prepared_path(model, version):
    """The prepared dataset of an evolution that has a job for it; else nothing."""
    if config["evolutions"][version]["preprocess"]:
        return f"<results>/prepared/{model}/{version}"
    return []


def patch_path(patch):
    return "<results>/patches/{0.model}/{0.trained_on}/{0.task}/seed{0.seed}".format(patch)


EXISTING_PATCHES = {
    "{0.model}/{0.trained_on}/{0.task}/seed{0.seed}".format(patch): patch
    for patch in study.existing_patches(config)
}


def existing_patch(path):
    """Options that say where a patch that someone brings comes from, and what it is called."""
    patch = EXISTING_PATCHES[path]
    source = study.without(study.existing_patches(config)[patch], "trained_on")
    names = [f"{name}={value}" for name, value in asdict(patch).items()]
    return {**source, "hub_mirror": config["hub_mirror"], "names": names}


def adapter_path(cell):
    """What a cell applies: the patch itself on its own version, a port of it elsewhere."""
    if not cell.is_ported:
        return patch_path(cell.patch)
    return (
        "<results>/ports/{0.model}/{0.trained_on}/{0.applied_to}/{0.task}/{0.method}/seed{0.seed}"
    ).format(cell)


def merged_path(cell):
    return (
        "<results>/merged/{0.model}/{0.trained_on}/{0.applied_to}/{0.task}/{0.method}/seed{0.seed}"
    ).format(cell)


# Worked out once: a large study asks for each job's cells again and again.
CELLS = study.cells_by_job(config)


def cells_of(wildcards):
    return CELLS[wildcards.model, wildcards.applied_to, wildcards.task]


def adapters_of(wildcards):
    """Every adapter that a scoring job applies, in the order of its cells."""
    return [adapter_path(cell) for cell in cells_of(wildcards) if cell.patch]


def cells_to_score(wildcards, adapters):
    """Options that name each cell of a scoring job: `trained_on/method/seed=adapter`."""
    cells = cells_of(wildcards)
    patched = [cell for cell in cells if cell.patch]
    return {
        "un_patched": len(patched) < len(cells),
        "adapter": [
            "{0.trained_on}/{0.method}/{0.seed}={1}".format(cell, adapter)
            for cell, adapter in zip(patched, adapters)
        ]
        or None,
    }


def score_paths(suffix):
    """Results of every scoring job of the study."""
    return ["<results>/scores/{}/{}/{}{}".format(*job, suffix) for job in CELLS]


def defining_files(task):
    """The study's own files that define a task; lm-eval's are covered by its pinned version."""
    definition = config["tasks"][task]
    if "include" not in definition:
        return []
    path = task_files.find(definition.get("lm_eval", task), [Path(definition["include"])])
    return [] if path is None else task_files.defining_files(path)


def norms_path(cell):
    return (
        "<results>/analysis/{0.model}/{0.applied_to}/norms/{0.trained_on}/{0.task}/seed{0.seed}.json"
    ).format(cell)


def movement_paths():
    """How far every evolved or released version of the study lies from its base."""
    return [
        "<results>/analysis/{}/{}/movement.json".format(*place)
        for place in study.moved_versions(config)
    ]


def with_rows(kind):
    """Names of the study's tables or figures that have something to show."""
    return [name for name, settings in config[kind].items() if study.has_rows(config, settings)]


def table_inputs(table):
    """What a table is made from, by its kind."""
    settings = config["tables"][table]
    match settings["kind"]:
        case "versions":
            return movement_paths()
        case "norms":
            return [norms_path(cell) for cell in study.compared_cells(config, settings)]
        case "efficiency":
            compared = study.compared_cells(config, settings)
            natives = [patch_path(study.native_patch(cell)) for cell in compared]
            return [*natives, *map(adapter_path, compared)]
        case _:
            return ["<results>/scores.csv"]


def merged_checkpoints():
    """The full checkpoints that the study asks for."""
    cells = [configuration.merged_cell(config, wanted) for wanted in config["merged"]]
    return [merged_path(cell) for cell in cells]


def corpus_files(corpus):
    """Local files that a corpus is made from."""
    sources = config["corpora"][corpus]["sources"]
    generators = [
        source["generator"].rpartition(":")[0] for source in sources if "generator" in source
    ]
    return [*generators, *(file for source in sources for file in source.get("files", []))]


def described_study():
    """The study and, of each rule, what the plan prices: its outputs and what its jobs ask for."""
    rules = [
        {
            "name": rule.name,
            "outputs": [str(path) for path in rule.output],
            **{
                name: rule.resources[name].value
                for name in ("gpu", "mem_mb")
                if name in rule.resources and not rule.resources[name].is_evaluable()
            },
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
