"""Load a study's configuration: check it against the schema, fill in defaults, check the rest.

Every mistake raises an InputError of one line: file, key, found, expected, nearest valid value.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from portllm.study import (
    axolotl_recipes,
    chains,
    checks,
    custom_code,
    locations,
    overlays,
    stage_settings,
    validation,
)
from portllm.study.exhibits import Registry
from portllm.study.matrix import Config
from portllm.study.yaml_files import KeyOrigins, read_recipe


def recipes(config: Config) -> dict[str, dict[str, Any]]:
    """Read the Axolotl keys of each evolution: its recipe files, then its overrides."""
    return {
        name: read_recipe(map(Path, stage_settings.recipe_files(config, name)))
        | definition["overrides"]
        for name, definition in config["evolutions"].items()
    }


def check_tasks(config: Config, library: Path | None, files: Iterable[str]) -> None:
    """Check a loaded study's tasks again, once lm-eval is installed. Arguments as in `load`."""
    checks.check_tasks(config, library, KeyOrigins(map(Path, files)))


def load(
    config: Config,
    *,
    schema: Path,
    exhibits: Registry,
    files: Iterable[Path] = (),
    task_library: Path | None = None,
    device_limit: int | None = None,
    workflow_directory: Path = Path(),
) -> Config:
    """Check a configuration, fill in its defaults in place, and return it.

    Args:
        config: The merged configuration.
        schema: The schema's file.
        exhibits: All kinds of tables and figures (`portllm.reporting.registry.load`).
        files: The YAML files that the configuration was merged from, for error messages.
        task_library: lm-eval's own task folder; None if lm-eval is not installed.
        device_limit: How many devices the run may use; None for no limit.
        workflow_directory: The workflow's directory, where files that come with it are found.

    Raises:
        InputError: for the first mistake, with its file and key.

    """
    files = list(files)
    origins = KeyOrigins(files)
    known_settings = validation.full_schema(schema, exhibits)
    overlays.check_has_base(config, files, project=schema.parents[1])
    validation.check_schema(config, known_settings, files)
    locations.resolve_paths(config, known_settings, workflow_directory, origins)
    chains.expand(config, origins.at)
    checks.check_references(
        config, origins, exhibits=exhibits, task_library=task_library, device_limit=device_limit
    )
    project = schema.parents[1]
    axolotl_recipes.check(config, project, origins)
    custom_code.check_consent(config, project / "resources", origins)
    exhibits.fill_defaults(config)
    return config
