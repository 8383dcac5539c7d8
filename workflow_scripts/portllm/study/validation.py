"""Validate a study's configuration against the schema, and fill in the schema's defaults.

The texts of errors about misspelt, missing and ill-typed keys are here; `checks` has the others.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match

from portllm.errors import InputError, nearest, shown
from portllm.study.exhibits import Registry
from portllm.study.matrix import Config
from portllm.study.schema import resolve
from portllm.study.yaml_files import KeyOrigins, read_yaml
from portllm.weights import finite

FILLED = "x-fill-defaults"
"""The schema's own keyword: false where defaults are not filled in."""


def _is_whole_number(checker: Any, value: Any) -> bool:
    # 1.0 would become a word of a command that expects an integer.
    return type(value) is int


def _is_number(checker: Any, value: Any) -> bool:
    # YAML has .nan and .inf, which no bound excludes. The comparison is false for NaN.
    return type(value) in (int, float) and abs(value) <= finite.MOST


_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_whole_number, "number": _is_number}
    ),
)


def _unknown_key(error: ValidationError, origins: KeyOrigins) -> str:
    allowed = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in allowed)
    place = origins.at(*error.absolute_path, unknown)
    return f"{place}: unknown key; {nearest(unknown, allowed)}"


def _schema_message(error: ValidationError, origins: KeyOrigins) -> str:
    place = origins.at(*error.absolute_path)
    found = shown(error.instance)
    match error.validator:
        case "additionalProperties":
            return _unknown_key(error, origins)
        case "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return f"{place}: the key {missing!r} is missing"
        case "type":
            expected = error.validator_value
            names = expected if isinstance(expected, str) else " or ".join(expected)
            if isinstance(error.instance, float) and "number" in names:
                names = names.replace("number", f"number up to {finite.MOST:.3g} in magnitude")
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
    error = best_match(_Validator(schema).iter_errors(config))
    if error is not None:
        raise InputError(_schema_message(error, KeyOrigins(files)))
    _fill_defaults(config, schema, schema)
