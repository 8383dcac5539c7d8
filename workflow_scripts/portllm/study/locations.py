"""Find the files that a study names: in the working directory, else among the workflow's own files.

A relative path in a study counts from the working directory. A study can also name files that
come with the workflow, such as `config/axolotl/lora.yaml`, wherever it runs: a path that does not
exist in the working directory counts from the workflow's directory. The schema gives settings that
hold paths the `format` file, directory or function (`FILE:FUNCTION`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.study.matrix import Config
from portllm.study.schema import resolve
from portllm.study.yaml_files import Key, KeyOrigins

FUNCTION = "function"
FORMATS = ("file", "directory", FUNCTION)


def resolve_paths(
    config: Config, schema: dict[str, Any], workflow_directory: Path, origins: KeyOrigins
) -> None:
    """Replace, in place, each path of a study that only exists in the workflow's directory.

    Nothing changes if the workflow's directory is the working directory.

    Args:
        config: A study that fits the schema.
        schema: The parsed schema.
        workflow_directory: The workflow's directory, relative to the working directory.
        origins: The files of the study, for error messages.

    Raises:
        InputError: for a path that exists in neither directory.
    """
    if workflow_directory == Path():
        return

    def replace(text: str, key: Key, kind: str) -> str:
        file, colon, function = text.rpartition(":") if kind == FUNCTION else (text, "", "")
        if Path(file).exists():
            return text
        place = workflow_directory / file
        if place.exists():
            return f"{place}{colon}{function}"
        raise InputError(
            f"{origins.at(*key)}: {file} exists neither in the working directory ({Path.cwd()}) "
            f"nor in the workflow's directory ({workflow_directory.resolve()})"
        )

    _replace_marked(config, schema, schema, (), replace)


def _replace_marked(
    value: Any,
    node: dict[str, Any],
    root: dict[str, Any],
    key: Key,
    replace: Callable[[str, Key, str], str],
) -> Any:
    """Return a value of a study with its paths replaced; mappings change in place."""
    node = resolve(node, root)
    kind = node.get("format")
    if kind in FORMATS:
        if isinstance(value, list):
            return [replace(item, key, kind) for item in value]
        return value if value is None else replace(value, key, kind)
    if isinstance(value, dict):
        known, others = node.get("properties", {}), node.get("additionalProperties")
        for name, item in value.items():
            part = known.get(name, others)
            if isinstance(part, dict):
                value[name] = _replace_marked(item, part, root, (*key, name), replace)
    elif isinstance(value, list) and isinstance(node.get("items"), dict):
        for index, item in enumerate(value):
            value[index] = _replace_marked(item, node["items"], root, (*key, index), replace)
    return value
