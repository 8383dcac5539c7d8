"""A study's settings as config/schema.yaml defines them: names, types, defaults, descriptions.

The schema is the only place that states a default. Programs build their options from it, and the
library takes its default values from it.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

# An installed package has the schema next to this module; a checkout has it in config/.
_FILES = (
    Path(__file__).with_name("schema.yaml"),
    Path(__file__).parents[3] / "config" / "schema.yaml",
)
NULL = "null"
"""What an option takes for null where the default is something else."""


def schema_file() -> Path:
    """Return the path of schema.yaml."""
    return next(file for file in _FILES if file.exists())


@cache
def schema() -> dict[str, Any]:
    """Return the parsed schema."""
    import yaml

    # The C loader parses the schema in 7 ms, the Python loader in 150 ms.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with schema_file().open() as stream:
        return yaml.load(stream, loader)


def resolve(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Merge the target of a node's `$ref` into the node; the node's own keys win."""
    if "$ref" not in node:
        return node
    target = root
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**resolve(target, root), **node}


def properties(section: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a section, with the schema of each.

    Args:
        section: A dotted path such as `patch` or `tasks.*`, where `*` stands for a name that the
            study chooses; "" for the top level.
    """
    root = schema()
    node = root
    for part in section.split(".") if section else ():
        node = resolve(
            node["additionalProperties"] if part == "*" else node["properties"][part], root
        )
    return {name: resolve(setting, root) for name, setting in node["properties"].items()}


def defaults(section: str) -> dict[str, Any]:
    """Return the default of each setting of a section that has one."""
    return {
        name: setting["default"]
        for name, setting in properties(section).items()
        if "default" in setting
    }


def _types(setting: dict[str, Any]) -> list[str]:
    types = setting.get("type", [])
    return [types] if isinstance(types, str) else types


def _parser(setting: dict[str, Any]) -> Callable[[str], Any]:
    types = _types(setting)
    convert: Callable[[str], Any] = str
    for name, function in (
        ("integer", int),
        ("number", float),
        ("object", json.loads),
        ("boolean", json.loads),
    ):
        if name in types:
            convert = function
    if "null" not in types or setting.get("default") is None:
        return convert

    def number_or_null(text: str) -> Any:
        return None if text == NULL else convert(text)

    return number_or_null


def _help(setting: dict[str, Any]) -> str:
    text = " ".join(setting["description"].split()).replace("%", "%%")
    default = setting.get("default")
    return text if default is None or default == {} else f"{text} (default: {default})"


def _keywords(setting: dict[str, Any], *, required: bool) -> dict[str, Any]:
    if "boolean" in _types(setting) and "null" not in _types(setting):
        return {"action": "store_true", "help": _help({**setting, "default": None})}
    keywords = {
        "type": _parser(setting),
        "default": setting.get("default"),
        "required": required,
        "help": _help(setting),
    }
    if "boolean" in _types(setting):
        # `--name` is true and `--name false` false, since None is neither.
        keywords |= {"nargs": "?", "const": True}
    if "enum" in setting:
        keywords["choices"] = setting["enum"]
    if any("array" in _types(option) for option in (setting, *setting.get("anyOf", ()))):
        keywords["nargs"] = "+"
    return keywords


def add_options(
    parser: argparse.ArgumentParser,
    section: str,
    *names: str,
    required: Iterable[str] = (),
) -> None:
    """Add a command-line option for each setting of a section: `batch_size` is `--batch-size`.

    Args:
        parser: The parser to add to.
        section: The section, as in `properties`.
        names: The settings to add; none means all.
        required: The settings that must be given.
    """
    known = properties(section)
    for name in names or known:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            **_keywords(known[name], required=name in required),
        )
