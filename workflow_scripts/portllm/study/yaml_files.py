"""Read a study's YAML files, and name the file and key that a mistake is in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import yaml_text
from portllm.storage.files import read_text

Key = tuple[str | int, ...]


def read_yaml(path: Path, *, what: str) -> Any:
    """Read a YAML file.

    Raises:
        InputError: with the line, if the file does not exist, does not parse or is too large.

    """
    if not path.exists():
        raise InputError(f"{what}: no such file")
    return yaml_text.parse(read_text(path), what)


def read_recipe(files: Iterable[Path], *, origin: str | None = None) -> dict[str, Any]:
    """Read the Axolotl keys of layered recipe files; later files win.

    Args:
        files: YAML files.
        origin: the setting that names the files, for error messages.

    Raises:
        InputError: a file does not exist, does not parse or is not a mapping.
    """
    recipe: dict[str, Any] = {}
    for file in files:
        place = f"{origin}: {file}" if origin else str(file)
        keys = read_yaml(file, what=place)
        if not isinstance(keys, dict):
            raise InputError(f"{place}: expected a mapping of Axolotl's keys")
        recipe |= keys
    return recipe


class KeyOrigins:
    """The file that each key of a merged configuration comes from, for error messages."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {path: read_yaml(path, what=str(path)) or {} for path in files}

    def at(self, *key: str | int) -> str:
        """Return `file: dotted.key` for a key; the last file that sets it wins."""
        dotted = ".".join(str(part) for part in key)
        for path, content in reversed(self._files.items()):
            if _holds(content, key):
                return f"{path}: {dotted}" if dotted else str(path)
        first = next(iter(self._files), Path("configuration"))
        return f"{first}: {dotted}" if dotted else str(first)


def _holds(content: Any, key: Key) -> bool:
    for part in key:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
