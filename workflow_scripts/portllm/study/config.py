"""Load a study's configuration: check it against the schema, fill in defaults, check the rest.

Every mistake raises an InputError of one line: file, key, found, expected, nearest valid value.
"""

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from portllm.errors import InputError, nearest
from portllm.study import chains, checks, locations, overlays, stage_settings
from portllm.study.exhibits import Registry
from portllm.study.matrix import Config
from portllm.study.settings import resolve
from portllm.study.yaml_files import KeyOrigins, read_recipe, read_yaml

FILLED = "x-fill-defaults"
"""The schema's own keyword: false where defaults are not filled in."""


def _unknown_key(error: ValidationError, origins: KeyOrigins) -> str:
    allowed = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in allowed)
    place = origins.at(*error.absolute_path, unknown)
    return f"{place}: unknown key; {nearest(unknown, allowed)}"


def _schema_message(error: ValidationError, origins: KeyOrigins) -> str:
    place = origins.at(*error.absolute_path)
    found = repr(error.instance)
    match error.validator:
        case "additionalProperties":
            return _unknown_key(error, origins)
        case "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return f"{place}: the key {missing!r} is missing"
        case "type":
            expected = error.validator_value
            names = expected if isinstance(expected, str) else " or ".join(expected)
            return f"{place}: found {found}, expected {names}"
        case "enum":
            options = nearest(str(error.instance), error.validator_value)
            return f"{place}: found {found}, which is not a valid choice; {options}"
        case "pattern":
            hint = error.schema.get("description", error.validator_value)
            return f"{place}: found {found}, expected: {hint}"
        case _:
            return f"{place}: {error.message}"


def _fill_defaults(config: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    schema = resolve(schema, root)
    # Partial overrides of other settings: a missing key means the overridden value, not a default.
    if not schema.get(FILLED, True):
        return
    if isinstance(config, dict):
        known = schema.get("properties", {})
        for key, part in known.items():
            if "default" in part and key not in config:
                config[key] = copy.deepcopy(part["default"])
            if key in config:
                _fill_defaults(config[key], part, root)
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for key in config.keys() - known.keys():
                _fill_defaults(config[key], others, root)
    elif isinstance(config, list) and isinstance(schema.get("items"), dict):
        for item in config:
            _fill_defaults(item, schema["items"], root)


def full_schema(path: Path, exhibits: Registry) -> dict[str, Any]:
    """Read a study's schema and add the kinds of tables and figures to it."""
    return exhibits.complete_schema(read_yaml(path, what=str(path)))


def check_schema(config: Config, schema: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Validate a configuration against the schema and fill in its defaults, in place."""
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise InputError(_schema_message(error, KeyOrigins(files)))
    _fill_defaults(config, schema, schema)


def recipes(config: Config) -> dict[str, dict[str, Any]]:
    """Read the Axolotl keys of each evolution: its recipe files, then its overrides."""
    return {
        name: read_recipe(map(Path, stage_settings.recipe_files(config, name)))
        | definition["overrides"]
        for name, definition in config["evolutions"].items()
    }


def check_packages(recipes: dict[str, dict[str, Any]], pins: Path) -> None:
    """Check that the pins install DeepSpeed if a recipe uses it.

    It is not installed by default, because every training would then import it.

    Args:
        recipes: the recipe of each evolution.
        pins: the pinned requirements of the training environment.

    Raises:
        InputError: a recipe uses DeepSpeed, which is not pinned.
    """
    if re.search(r"^deepspeed==", pins.read_text(), flags=re.MULTILINE):
        return
    for name, recipe in recipes.items():
        if recipe.get("deepspeed"):
            raise InputError(
                f"evolutions.{name}: its recipe uses DeepSpeed ({recipe['deepspeed']}), which "
                f"{pins.parent.name}/{pins.name} does not install: add deepspeed to "
                f"{pins.with_suffix('.in').name} there and run `make pins envs`, or shard with "
                "fsdp_config"
            )


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
    known_settings = full_schema(schema, exhibits)
    overlays.check_has_base(config, files, project=schema.parents[1])
    check_schema(config, known_settings, files)
    locations.resolve_paths(config, known_settings, workflow_directory, origins)
    chains.expand(config, origins.at)
    checks.check_references(
        config, origins, exhibits=exhibits, task_library=task_library, device_limit=device_limit
    )
    exhibits.fill_defaults(config)
    return config
