"""List the Python code that a study runs, and require consent to what the study brings.

Code that comes with the workflow (in its folder `resources`) and with the pinned packages needs no
consent. lm-eval's templates count as code: they are not sandboxed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.data import task_files
from portllm.errors import InputError
from portllm.study import matrix, stage_settings
from portllm.study.matrix import Config
from portllm.study.yaml_files import Key, KeyOrigins, read_recipe

CONSENT = "allow_custom_code"
"""The setting that allows a study to run its own code."""
PACKAGE = "axolotl."
DATASETS = ("datasets", "test_datasets", "pretraining_dataset")
"""Keys of a recipe that hold entries with a `type`."""
IMPORTED = (
    ("plugins",),
    ("trainer_cls",),
    ("trl", "reward_funcs"),
    ("trl", "rollout_func"),
    ("vllm", "worker_extension_cls"),
)
"""Keys of a recipe whose values are names of classes or functions to import."""


@dataclass(frozen=True)
class CustomCode:
    """Code that a study runs: the setting that names it, and what it is."""

    key: Key
    code: str
    comes_with_workflow: bool = False

    @property
    def origin(self) -> str:
        """What brings the code."""
        return "the workflow" if self.comes_with_workflow else "the study"


def of_study(config: Config, shipped: Path) -> list[CustomCode]:
    """List the code that a study runs besides that of the workflow and its packages.

    Args:
        config: a study with its defaults.
        shipped: the workflow's folder of resources.
    """
    return [*_generators(config, shipped), *_tasks(config, shipped), *_recipes(config)]


def check_consent(config: Config, shipped: Path, origins: KeyOrigins) -> None:
    """Check that a study with code of its own sets `allow_custom_code`.

    Raises:
        InputError: it does not; the message names the code and the setting.
    """
    if config[CONSENT]:
        return
    own = [custom for custom in of_study(config, shipped) if not custom.comes_with_workflow]
    if own:
        listed = ", ".join(dict.fromkeys(custom.code for custom in own))
        raise InputError(
            f"{origins.at(*own[0].key)}: the study runs code that does not come with the "
            f"workflow: {listed}; read it, then set {CONSENT}: true in the study"
        )


def _is_below(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _generators(config: Config, shipped: Path) -> Iterator[CustomCode]:
    for name, corpus in config["corpora"].items():
        for index, source in enumerate(corpus["sources"]):
            if "generator" in source:
                file = Path(source["generator"].rpartition(":")[0])
                key = ("corpora", name, "sources", index, "generator")
                yield CustomCode(key, source["generator"], _is_below(file, shipped))


def _tasks(config: Config, shipped: Path) -> Iterator[CustomCode]:
    for name in matrix.chosen(config, "tasks"):
        task = config["tasks"][name]
        if "include" in task:
            file = task_files.find(task.get("lm_eval", name), [Path(task["include"])])
            if file is not None:
                yield CustomCode(("tasks", name, "include"), str(file), _is_below(file, shipped))


def _recipes(config: Config) -> Iterator[CustomCode]:
    for name, evolution in config["evolutions"].items():
        files = map(Path, stage_settings.recipe_files(config, name))
        recipe = read_recipe(files) | evolution["overrides"]
        for code in code_of_recipe(recipe):
            yield CustomCode(("evolutions", name, "recipe"), code)


def code_of_recipe(recipe: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of an Axolotl recipe that import or fetch code, with their values."""
    for path in IMPORTED:
        value: Any = recipe
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        for imported in listed(value):
            if not str(imported).startswith(PACKAGE):
                yield f"{'.'.join(path)}: {imported}"
    for key in DATASETS:
        for entry in filter(lambda entry: isinstance(entry, dict), listed(recipe.get(key))):
            if _is_imported(entry.get("type")):
                yield f"{key}[].type: {entry['type']}"
            if entry.get("trust_remote_code"):
                yield f"{key}[].trust_remote_code"
    if recipe.get("trust_remote_code"):
        yield "trust_remote_code"


def listed(value: Any) -> list[Any]:
    """Return a list as it is, another value as a list of one, and None as an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_imported(kind: Any) -> bool:
    """Whether Axolotl may import a dataset's type from outside of its own package."""
    if not isinstance(kind, str) or kind.startswith(PACKAGE):
        return False
    # `alpaca.load_no_prompt` is a function of Axolotl's `alpaca`.
    return "." in kind and not kind.rpartition(".")[2].startswith("load")
