import copy
import os
import re
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# Not workflow.basedir: in a module that is the importing workflow's.
CHECKOUT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
sys.path.insert(0, str(CHECKOUT / "workflow_scripts"))

from portllm.data import fetching, task_files
from portllm.jobs import devices, supervision
from portllm.planning import estimates, known_versions, resource_requests
from portllm.reporting import registry
from portllm.snakemake_hooks import attach, device_options, environments
from portllm.snakemake_hooks import cache_adapter, not_made, output_cache, placement
from portllm.snakemake_hooks import program_code
from portllm.study import config as configuration
from portllm.study import exhibits, imported_patterns, matrix, paths, stage_settings, summary
from portllm.storage.files import read_json
from portllm.command_line import options
from portllm.errors import InputError, worded

PLACE = placement.place(workflow, CHECKOUT)
HERE, ENVIRONMENTS = PLACE.directory, PLACE.directory / ".venvs"
WITH_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method


def python(environment):
    """The interpreter of an environment; conda puts its own first on the PATH."""
    return "python" if WITH_CONDA else ENVIRONMENTS / environment / "bin" / "python"


# Shell commands use these variables instead of paths in params: the choice between virtual
# environments and conda changes no result and must not redo any work.
os.environ["SCRIPTS"] = str(HERE / "workflow_scripts")
os.environ["TRAIN_PYTHON"] = str(python("train"))
os.environ["EVAL_PYTHON"] = str(python("eval"))
os.environ["WORKFLOW_PYTHON"] = "python" if WITH_CONDA else sys.executable
# Checkpoints are kept outside outputs, because Snakemake deletes the outputs of a failed job.
os.environ["CHECKPOINTS"] = str(PLACE.results / "checkpoints")

# Jobs see no device, except those that run_job.py leases for them. It also watches the command, even
# without devices: it reports why the command ended, and stops it if the run is gone.
os.environ.update(devices.hidden(os.environ))
os.environ[supervision.SNAKEMAKE_PID] = str(os.getpid())

EXHIBITS = registry.load()

# A module's configuration belongs to the importing workflow, and none of its files is known.
STUDY_FILES = [] if PLACE.is_module else workflow.configfiles
config = copy.deepcopy(config) if PLACE.is_module else config

try:
    if workflow.workflow_settings.cache is not None:
        output_cache.prepare(
            os.environ, HERE / "workflow_scripts", with_devices=device_options.has_devices(workflow)
        )
        cache_adapter.install(PLACE.results)
    configuration.load(
        config,
        schema=HERE / "config" / "schema.yaml",
        exhibits=EXHIBITS,
        files=map(Path, STUDY_FILES),
        task_library=task_files.installed_tasks(ENVIRONMENTS / "eval"),
        device_limit=device_options.device_limit(workflow),
        workflow_directory=HERE,
    )
    RECIPES = configuration.recipes(config)
    PRICED = estimates.PricedStudy(
        config,
        results=PLACE.results,
        known=known_versions.hub_models(HERE / "resources" / "models"),
        recipes=RECIPES,
        known_tasks=read_json(HERE / "resources" / "task_sizes.json"),
        has_devices=device_options.has_devices(workflow),
    )
    resource_requests.check_devices(
        PRICED,
        device_options.devices_by_rule(workflow, PLACE.name_in_run),
        device_options.device_limit(workflow),
    )
except (InputError, OSError) as error:
    logger.error(f"error: {worded(error)}")
    sys.exit(1)

TABLES = exhibits.StudyExhibits(EXHIBITS, "tables", config)
FIGURES = exhibits.StudyExhibits(EXHIBITS, "figures", config)

PROGRESS = attach.attach(
    workflow,
    logger,
    PLACE,
    environment_names=[] if WITH_CONDA else environments.required(config),
    minutes=resource_requests.minutes_by_rule(PRICED),
    warnings=[*PRICED.warnings(), *summary.unpinned_sources(config)],
    after_building=lambda: configuration.check_tasks(
        config, task_files.installed_tasks(ENVIRONMENTS / "eval"), STUDY_FILES
    ),
)

# For `cache:` of rules whose outputs checkouts can share. Without --cache it is false, or Snakemake
# would advertise the option for each rule of each run.
SHARED = workflow.workflow_settings.cache is not None


envvars:
    "SCRIPTS",
    "TRAIN_PYTHON",
    "EVAL_PYTHON",
    "WORKFLOW_PYTHON",
    "CHECKPOINTS",


def asks(rule, name, default):
    """A resource of a rule's jobs: set under `resources:`, or estimated from their model."""
    return lambda wildcards, attempt: resource_requests.requested(
        PRICED, rule, dict(wildcards), name, default, attempt
    )


# A parameter of the rules: what they made with other code is made again.
code = program_code.ProgramCode(HERE / "workflow_scripts", program_code.KEPT_IN).parameter


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
    """The files of the local directory that a model or a patch is linked from."""
    return unmoved(fetching.local_files(source, kept))


def mirrored_content(source, kept):
    """What tells that a mirror's files have changed, wherever the mirror is."""
    return fetching.mirrored_content(source, config["hub_mirror"], kept)


def unmoved(files):
    """Inputs that are not results: a module's `prefix:` does not apply to them."""
    return [local(str(file)) for file in files]
