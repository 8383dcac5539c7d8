"""Derive a study's versions, patches and cells from its configuration.

Nothing here reads files or depends on Snakemake. Configurations are dictionaries with defaults, as
`portllm.study.config.load` returns them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
# A scoring job: model, version, task.
Job = tuple[str, str, str]

BASE = "base"
NONE = "none"
SAME = "same"
ALL = "all"
LATER = "later"


@dataclass(frozen=True, order=True)
class Patch:
    """A patch for `task`, trained on version `trained_on` of `model`."""

    model: str
    trained_on: str
    task: str
    seed: int


@dataclass(frozen=True, order=True)
class Cell:
    """One score: a version and a task, with the patch that is applied, if any."""

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
    """List the models, tasks, evolutions or arms that the study runs, in its order."""
    return list(config["study"].get(kind) or config.get(kind, {}))


def sources(config: Config, model: str) -> dict[str, dict[str, Any]]:
    """Return the sources of a model's base and releases, the versions that are not evolved.

    A model that only receives existing patches needs no base.
    """
    definition = config["models"][model]
    base = {BASE: definition["base"]} if "base" in definition else {}
    return {**base, **definition["releases"]}


def adapter_releases(config: Config) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the releases that are adapters for a parent, by model and version."""
    return {
        (model, release): definition
        for model, owner in config["models"].items()
        for release, definition in owner["releases"].items()
        if "adapter" in definition
    }


def existing_patches(config: Config) -> dict[Patch, dict[str, Any]]:
    """Return the sources of existing patches; they have the first seed of the study."""
    seed = config["study"]["seeds"][0]
    return {
        Patch(model, definition["trained_on"], task, seed): definition
        for model, owner in config["models"].items()
        for task, definition in owner["patches"].items()
    }


def evolutions(config: Config, model: str) -> list[str]:
    """List the evolutions of a model, parents before children.

    An evolution is left out if the study runs none of its tasks and no other evolution continues
    it.
    """
    tasks = chosen(config, "tasks")
    scored = [
        name
        for name in config["models"][model].get("evolutions", chosen(config, "evolutions"))
        if name in chosen(config, "evolutions")
        and not set(scored_tasks(config, name)).isdisjoint(tasks)
    ]
    ordered: list[str] = []

    def add(name: str) -> None:
        parent = config["evolutions"][name]["from"]
        if parent in config["evolutions"] and parent not in ordered:
            add(parent)
        if name not in ordered:
            ordered.append(name)

    for name in scored:
        add(name)
    return ordered


def made_from(config: Config, model: str) -> dict[str, str]:
    """Return the parent of each version of a model that is an evolution or an adapter."""
    merged = adapter_releases(config).items()
    return {
        **{release: source["parent"] for (owner, release), source in merged if owner == model},
        **{name: config["evolutions"][name]["from"] for name in evolutions(config, model)},
    }


def parents(config: Config, model: str) -> dict[str, str]:
    """Return the same as `made_from`, parents before children."""
    unordered = made_from(config, model)
    ordered: dict[str, str] = {}

    def add(version: str) -> None:
        if version in unordered and version not in ordered:
            add(unordered[version])
            ordered[version] = unordered[version]

    for version in unordered:
        add(version)
    return ordered


def versions(config: Config, model: str) -> list[str]:
    """List all versions of a model: base, releases, evolutions."""
    return [*sources(config, model), *evolutions(config, model)]


def scored_tasks(config: Config, version: str) -> list[str]:
    """List the tasks scored on a version: those that its evolution names, else all."""
    return config["evolutions"].get(version, {}).get("tasks", list(config["tasks"]))


def updates(config: Config, model: str) -> dict[str, int]:
    """Return the update number of each version of a model: its depth in the chain, 0 for the base.

    Imported versions have explicit numbers. Releases that are checkpoints, and what continues them,
    have none, because the number of the provider's updates in between is unknown. A release that is
    an adapter is one update of its parent.
    """
    numbers: dict[str, int] = {}
    for source in config["imported"].values():
        if model in source["models"]:
            numbers |= source["versions"]
    if model in config["models"]:
        numbers[BASE] = 0
        for version, parent in parents(config, model).items():
            if parent in numbers:
                numbers[version] = numbers[parent] + 1
    return numbers


def imported_names(config: Config, kind: str) -> list[str]:
    """List the models, tasks or versions that imported scores may have."""
    names = (name for source in config["imported"].values() for name in source[kind])
    return list(dict.fromkeys(names))


def _applied_to(arm: dict[str, Any], available: list[str]) -> list[str]:
    selector = arm["applied_to"]
    if selector == ALL:
        return available
    if selector == LATER:
        return [version for version in available if version != BASE]
    names = [selector] if isinstance(selector, str) else selector
    return [version for version in available if version in names]


def arm_cells(config: Config, arm: str, model: str, task: str) -> Iterator[Cell]:
    """Yield the cells that an arm selects for a model and a task, one per version and seed."""
    definition = config["arms"][arm]
    available = versions(config, model)
    for version in _applied_to(definition, available):
        if task not in scored_tasks(config, version):
            continue
        trained_on = version if definition["trained_on"] == SAME else definition["trained_on"]
        if trained_on == NONE:
            yield Cell(model, version, task)
            continue
        existing = [
            patch.seed
            for patch in existing_patches(config)
            if (patch.model, patch.trained_on, patch.task) == (model, trained_on, task)
        ]
        # A patch cannot be trained on a version that the model does not have.
        trained = config["study"]["seeds"] if trained_on in available else []
        for seed in existing or trained:
            yield Cell(model, version, task, trained_on, definition["method"], seed)


def cells(config: Config) -> list[Cell]:
    """List every cell of the study once, in the order of the tables."""
    of_arms = (
        cell
        for model in chosen(config, "models")
        for task in chosen(config, "tasks")
        for arm in chosen(config, "arms")
        for cell in arm_cells(config, arm, model, task)
    )
    return list(dict.fromkeys(of_arms))


def cells_by_job(config: Config) -> dict[Job, list[Cell]]:
    """Group the cells by scoring job: model, version and task."""
    jobs: dict[Job, list[Cell]] = {}
    for cell in cells(config):
        jobs.setdefault((cell.model, cell.applied_to, cell.task), []).append(cell)
    return jobs


def merged_cell(config: Config, entry: dict[str, Any]) -> Cell:
    """Return the cell that an entry of `merged` names; its seed defaults to the study's first."""
    return Cell(
        entry["model"],
        entry["applied_to"],
        entry["task"],
        entry["trained_on"],
        entry["method"],
        entry.get("seed", config["study"]["seeds"][0]),
    )


def native_patch(cell: Cell) -> Patch:
    """Return the patch that is trained on the version that the cell applies its patch to."""
    return Patch(cell.model, cell.applied_to, cell.task, cell.seed or 0)


def models_from_scratch(config: Config) -> list[str]:
    """List the models whose base is pretrained by the study."""
    bases = {name: model.get("base", {}) for name, model in config["models"].items()}
    return [name for name, base in bases.items() if "from_scratch" in base]


def trained_tasks(config: Config) -> set[str]:
    """Return the tasks for which the study trains a patch."""
    existing = existing_patches(config)
    return {cell.task for cell in cells(config) if cell.patch and cell.patch not in existing}


def obtained_versions(config: Config) -> list[str]:
    """List the versions that some model obtains instead of evolving them."""
    return sorted({version for model in config["models"] for version in sources(config, model)})
