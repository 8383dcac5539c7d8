"""Write the keys of Axolotl's configuration as JSON; run it in the training environment.

The workflow checks recipes at its start, in an environment without Axolotl. `make
axolotl-keys` writes resources/axolotl/keys.json anew.
"""

import argparse
import importlib
import importlib.metadata
import json
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axolotl import integrations
from axolotl.integrations.base import BasePlugin
from axolotl.utils.schemas.config import AxolotlConfigWCapabilities
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

Keys = dict[str, Any]
"""Names of keys; the value of each is the keys below it, None if Axolotl does not restrict them."""

OWN = ("capabilities", "env_capabilities")
"""Keys that Axolotl adds itself."""


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that a type annotation consists of."""
    if typing.get_origin(annotation) in (dict, typing.Literal):
        yield annotation
    elif parts := typing.get_args(annotation):
        for part in parts:
            yield from alternatives(part)
    else:
        yield annotation


def names(name: str, field: FieldInfo) -> list[str]:
    """List a field's name and aliases."""
    choices = field.validation_alias
    aliases = choices.choices if isinstance(choices, AliasChoices) else [choices, field.alias]
    return list(dict.fromkeys([name, *filter(lambda alias: isinstance(alias, str), aliases)]))


def keys_below(annotation: Any) -> Keys | None:
    """Return the keys of a mapping or of a list of mappings; None if any key is allowed."""
    kinds = list(alternatives(annotation))
    if any(kind is dict or typing.get_origin(kind) is dict or kind is Any for kind in kinds):
        return None
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if not models or any(model.model_config.get("extra") == "allow" for model in models):
        return None
    return {name: below for model in models for name, below in keys_of(model).items()}


def keys_of(model: type[BaseModel]) -> Keys:
    """Return the keys of a model."""
    return {
        alias: keys_below(field.annotation)
        for name, field in model.model_fields.items()
        for alias in names(name, field)
        if name not in OWN
    }


def plugins() -> Iterator[tuple[str, Keys]]:
    """Yield the name and the keys of each of Axolotl's own plugins."""
    for package in pkgutil.iter_modules(integrations.__path__, "axolotl.integrations."):
        try:
            module = importlib.import_module(package.name)
        except ImportError:
            continue  # needs a package that is not installed
        for name, plugin in list(vars(module).items()):
            if isinstance(plugin, type) and issubclass(plugin, BasePlugin):
                arguments = plugin.get_input_args(plugin.__new__(plugin))
                if plugin is not BasePlugin and arguments:
                    place, _, class_name = arguments.rpartition(".")
                    model = getattr(importlib.import_module(place), class_name)
                    yield f"{package.name}.{name}", keys_of(model)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    keys = keys_of(AxolotlConfigWCapabilities)
    # Validators accept these too: the older names with a prefix.
    keys["fsdp_config"] |= {"version": None} | {f"fsdp_{key}": None for key in keys["fsdp_config"]}
    content = {
        "axolotl": importlib.metadata.version("axolotl"),
        "keys": keys,
        "plugins": dict(plugins()),
    }
    arguments.output.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
