"""A study: its versions, patches and cells, worked out from a checked configuration.

Nothing here reads files or knows Snakemake. Configurations are plain dictionaries whose defaults
have been filled in by `portllm.config.load`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

BASE = "base"
NONE = "none"
SAME = "same"
ALL = "all"
LATER = "later"


@dataclass(frozen=True, order=True)
class Patch:
    """A patch: what was learnt for `task` on version `trained_on` of `model`."""

    model: str
    trained_on: str
    task: str
    seed: int


@dataclass(frozen=True, order=True)
class Cell:
    """One score to make: a version, and the patch that is applied to it, if any."""

    model: str
    applied_to: str
    task: str
    trained_on: str = NONE
    method: str = NONE
    seed: int | None = None

    @property
    def patch(self) -> Patch | None:
        """The patch that the cell applies; None for the un-patched model."""
        if self.trained_on == NONE or self.seed is None:
            return None
        return Patch(self.model, self.trained_on, self.task, self.seed)

    @property
    def is_ported(self) -> bool:
        """Whether the patch was trained on another version than it is applied to."""
        return self.trained_on not in (NONE, self.applied_to)


def chosen(config: Config, kind: str) -> list[str]:
    """Names of one kind (models, tasks, evolutions, arms) that the study runs, in its order."""
    return list(config["study"].get(kind) or config.get(kind, {}))


def sources(config: Config, model: str) -> dict[str, dict[str, Any]]:
    """Versions of a model that are obtained, not evolved: its base and its provider's releases."""
    definition = config["models"][model]
    return {BASE: definition["base"], **definition["releases"]}


def evolutions(config: Config, model: str) -> list[str]:
    """Evolutions that a model goes through, parents before children."""
    wanted = [
        name
        for name in config["models"][model].get("evolutions", chosen(config, "evolutions"))
        if name in chosen(config, "evolutions")
    ]
    ordered: list[str] = []

    def add(name: str) -> None:
        parent = config["evolutions"][name]["from"]
        if parent in config["evolutions"] and parent not in ordered:
            add(parent)
        if name not in ordered:
            ordered.append(name)

    for name in wanted:
        add(name)
    return ordered


def versions(config: Config, model: str) -> list[str]:
    """All versions of a model: base, releases, evolutions."""
    return [*sources(config, model), *evolutions(config, model)]


def _applied_to(arm: dict[str, Any], available: list[str]) -> list[str]:
    selector = arm["applied_to"]
    if selector == ALL:
        return available
    if selector == LATER:
        return [version for version in available if version != BASE]
    wanted = [selector] if isinstance(selector, str) else selector
    return [version for version in available if version in wanted]


def arm_cells(config: Config, arm: str, model: str, task: str) -> Iterator[Cell]:
    """The cells that an arm selects for a model and a task, one for each version and seed."""
    definition = config["arms"][arm]
    available = versions(config, model)
    for version in _applied_to(definition, available):
        trained_on = version if definition["trained_on"] == SAME else definition["trained_on"]
        if trained_on == NONE:
            yield Cell(model, version, task)
            continue
        if trained_on not in available:
            continue
        for seed in config["study"]["seeds"]:
            method = definition["method"]
            yield Cell(model, version, task, trained_on, method, seed)


def cells(config: Config) -> list[Cell]:
    """Every cell of the study, once, in the order in which the tables list them."""
    found = (
        cell
        for model in chosen(config, "models")
        for task in chosen(config, "tasks")
        for arm in chosen(config, "arms")
        for cell in arm_cells(config, arm, model, task)
    )
    return list(dict.fromkeys(found))


def cells_of(config: Config, model: str, applied_to: str, task: str) -> list[Cell]:
    """The cells that one scoring job makes: one version, one task, every patch on it."""
    return [
        cell
        for cell in cells(config)
        if (cell.model, cell.applied_to, cell.task) == (model, applied_to, task)
    ]


def patch_settings(config: Config, task: str) -> dict[str, Any]:
    """Training settings of a patch for a task: the study's, with the task's own on top."""
    return {**config["patch"], **config["tasks"][task].get("patch", {})}


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Settings less some of them."""
    return {name: value for name, value in settings.items() if name not in names}


def models_from_scratch(config: Config) -> list[str]:
    """Models whose base is trained here."""
    return [name for name, model in config["models"].items() if "from_scratch" in model["base"]]


def obtained_versions(config: Config) -> list[str]:
    """Names of versions that some model obtains instead of evolving them."""
    return sorted({version for model in config["models"] for version in sources(config, model)})


def _lm_eval_task(config: Config, task: str) -> dict[str, Any]:
    definition = config["tasks"][task]
    return {
        "lm_eval": definition.get("lm_eval", task),
        "include": definition.get("include"),
        "allow_unsafe_code": definition["allow_unsafe_code"] or None,
    }


def task_data_settings(config: Config, task: str) -> dict[str, Any]:
    """What the task-data stage needs to know of a task."""
    limit = config["tasks"][task]["training_limit"]
    return {**_lm_eval_task(config, task), "training_limit": limit}


def scoring_settings(config: Config, task: str) -> dict[str, Any]:
    """What the scoring stage needs to know of a task."""
    definition = config["tasks"][task]
    chosen_here = {name: definition[name] for name in ("few_shot", "limit")}
    return {**_lm_eval_task(config, task), **chosen_here, **config["scoring"]}


def evolution_settings(config: Config, version: str) -> dict[str, Any]:
    """Settings of an evolution beyond its inputs."""
    definition = config["evolutions"][version]
    return {"overrides": definition["overrides"], "seed": definition["seed"]}


def method_settings(config: Config, name: str) -> dict[str, Any]:
    """A method's kind and parameters, the latter as `name=value`."""
    definition = config["methods"][name]
    parameters = [f"{key}={value}" for key, value in without(definition, "kind").items()]
    return {"method": definition["kind"], "parameter": parameters or None}


def table_settings(config: Config, table: str) -> dict[str, Any]:
    """What a table of scores needs: its own settings, the arms, and what recovery is."""
    arms = {arm: config["arms"][arm] for arm in chosen(config, "arms")}
    return {**config["tables"][table], "arms": arms, "recovery": config["recovery"]}


def figure_settings(config: Config, figure: str) -> dict[str, Any]:
    """What a figure of scores needs: its own settings, the arms, and what recovery is."""
    arms = {arm: config["arms"][arm] for arm in chosen(config, "arms")}
    return {**config["figures"][figure], "arms": arms, "recovery": config["recovery"]}
