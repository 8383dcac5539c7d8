"""A study: its versions, patches and cells, worked out from a checked configuration.

Nothing here reads files or knows Snakemake. Configurations are plain dictionaries whose defaults
have been filled in by `portllm.study.config.load`.
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

# Kinds of tables and figures that follow scores over updates.
TEMPORAL = ("temporal", "trend", "lifetime")
# Kinds that compare a carried patch with the one that was trained anew, weight by weight.
MEASURED = ("geometry", "loss_slices")


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
    """Versions of a model that are obtained, not evolved: its base and its provider's releases.

    A model that only receives existing patches needs no base.
    """
    definition = config["models"][model]
    base = {BASE: definition["base"]} if "base" in definition else {}
    return {**base, **definition["releases"]}


def existing_patches(config: Config) -> dict[Patch, dict[str, Any]]:
    """Patches that someone brings, by what they are in the study; their seed is its first."""
    seed = config["study"]["seeds"][0]
    return {
        Patch(model, definition["trained_on"], task, seed): definition
        for model, owner in config["models"].items()
        for task, definition in owner["patches"].items()
    }


def evolutions(config: Config, model: str) -> list[str]:
    """Evolutions that a model goes through, parents before children.

    One is left out whose tasks the study does not run, unless another continues it.
    """
    tasks = chosen(config, "tasks")
    wanted = [
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

    for name in wanted:
        add(name)
    return ordered


def versions(config: Config, model: str) -> list[str]:
    """All versions of a model: base, releases, evolutions."""
    return [*sources(config, model), *evolutions(config, model)]


def scored_tasks(config: Config, version: str) -> list[str]:
    """Tasks that are scored on a version: those of its evolution where it names some, else all."""
    return config["evolutions"].get(version, {}).get("tasks", list(config["tasks"]))


def updates(config: Config, model: str) -> dict[str, int]:
    """Which update each version of a model is: its depth in the chain, 0 for the base.

    Imported versions say it themselves. A release has no number, nor has what evolves from it: how
    many updates a provider made in between is not known.
    """
    numbers: dict[str, int] = {}
    for source in config["imported"].values():
        if model in source["models"]:
            numbers |= source["versions"]
    if model in config["models"]:
        numbers[BASE] = 0
        for version in evolutions(config, model):
            parent = config["evolutions"][version]["from"]
            if parent in numbers:
                numbers[version] = numbers[parent] + 1
    return numbers


def imported_names(config: Config, kind: str) -> list[str]:
    """Names of one kind (models, tasks, versions) that imported scores may have."""
    found = (name for source in config["imported"].values() for name in source[kind])
    return list(dict.fromkeys(found))


def imported_sources(config: Config, settings: dict[str, Any]) -> list[str]:
    """Sources of imported scores from which a table or figure selects."""

    def chooses(source: dict[str, Any], kind: str) -> bool:
        return not set(source[kind]).isdisjoint(settings.get(kind, source[kind]))

    kinds = ("models", "tasks", "versions")
    return [
        name
        for name, source in config["imported"].items()
        if all(chooses(source, kind) for kind in kinds)
    ]


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
        if task not in scored_tasks(config, version):
            continue
        trained_on = version if definition["trained_on"] == SAME else definition["trained_on"]
        if trained_on == NONE:
            yield Cell(model, version, task)
            continue
        brought = [
            patch.seed
            for patch in existing_patches(config)
            if (patch.model, patch.trained_on, patch.task) == (model, trained_on, task)
        ]
        # A patch cannot be trained on a version that the model does not have.
        trained = config["study"]["seeds"] if trained_on in available else []
        for seed in brought or trained:
            yield Cell(model, version, task, trained_on, definition["method"], seed)


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


def cells_by_job(config: Config) -> dict[Job, list[Cell]]:
    """Cells of each scoring job: one model, one version, one task, every patch on it."""
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
    """The patch that was trained on the version that the cell applies its patch to."""
    return Patch(cell.model, cell.applied_to, cell.task, cell.seed or 0)


def _is_selected(cell: Cell, settings: dict[str, Any]) -> bool:
    return (
        cell.model in settings.get("models", [cell.model])
        and cell.task in settings.get("tasks", [cell.task])
        and cell.applied_to in settings.get("versions", [cell.applied_to])
    )


def selected_cells(config: Config, settings: dict[str, Any]) -> list[Cell]:
    """Cells that a table or figure selects by its models, tasks and versions."""
    return [cell for cell in cells(config) if _is_selected(cell, settings)]


def compared_cells(config: Config, settings: dict[str, Any]) -> list[Cell]:
    """Selected ports that have a patch trained on the same version beside them.

    One for each patch and version, whatever the number of methods that the study ports it with.
    """
    trained = {cell.patch for cell in cells(config)} - existing_patches(config).keys()
    found: dict[tuple[Patch | None, str], Cell] = {}
    for cell in selected_cells(config, settings):
        if cell.is_ported and native_patch(cell) in trained:
            found.setdefault((cell.patch, cell.applied_to), cell)
    return list(found.values())


def measured_cells(config: Config, settings: dict[str, Any]) -> list[Cell]:
    """Compared ports of patches trained on a version of the study, whose update is known."""
    return [
        cell
        for cell in compared_cells(config, settings)
        if cell.trained_on in versions(config, cell.model)
    ]


def scaled_cells(config: Config, settings: dict[str, Any]) -> list[Cell]:
    """Selected ports that apply a multiple of the patch."""
    return [
        cell
        for cell in selected_cells(config, settings)
        if cell.is_ported and config["methods"][cell.method]["kind"] == "scaled"
    ]


def moved_versions(config: Config) -> list[tuple[str, str]]:
    """Models and their versions whose distance from the base can be measured."""
    return [
        (model, version)
        for model in chosen(config, "models")
        if "base" in config["models"][model]
        for version in versions(config, model)
        if version != BASE
    ]


def _arms_of_jobs(config: Config, settings: dict[str, Any]) -> dict[Job, dict[str, set[Cell]]]:
    """Scoring jobs (model, version, task) that are selected, each with the cells of its arms."""
    jobs: dict[Job, dict[str, set[Cell]]] = {}
    for model in chosen(config, "models"):
        for task in chosen(config, "tasks"):
            for arm in chosen(config, "arms"):
                for cell in arm_cells(config, arm, model, task):
                    if _is_selected(cell, settings):
                        arms = jobs.setdefault((model, cell.applied_to, task), {})
                        arms.setdefault(arm, set()).add(cell)
    return jobs


def jobs_with_items(config: Config, settings: dict[str, Any]) -> list[Job]:
    """Scoring jobs (model, version, task) whose items a table or figure compares."""
    roles = config["recovery"]
    others = {roles["zero_shot"], roles["re_fine_tuned"]}
    ported = set(settings.get("arms", [roles["ported"]]))
    found = []
    for job, arms in _arms_of_jobs(config, settings).items():
        match settings["kind"]:
            case "main":
                wanted = bool(set(settings.get("arms", arms)) & arms.keys())
            case "recovery":
                wanted = {roles["ported"], *others} <= arms.keys()
            case "comparisons":
                wanted = bool(ported & arms.keys() and others & arms.keys())
            case "seeds":
                shown = settings.get("arms", arms.keys())
                wanted = any(len(arms[arm]) > 1 for arm in shown if arm in arms)
            case _:
                wanted = False
        if wanted:
            found.append(job)
    return found


def has_rows(config: Config, settings: dict[str, Any]) -> bool:
    """Whether a table or figure would have anything to show in this study."""
    if settings["kind"] == "versions":
        return bool(moved_versions(config))
    if settings["kind"] in ("recovery", "norms", "efficiency"):
        return bool(compared_cells(config, settings))
    if settings["kind"] in ("comparisons", "seeds"):
        return bool(jobs_with_items(config, settings))
    if settings["kind"] in ("costs", "provenance"):
        return bool(cells(config))
    if settings["kind"] in MEASURED:
        return bool(measured_cells(config, settings))
    if settings["kind"] == "scaling":
        return bool(scaled_cells(config, settings))
    return bool(selected_cells(config, settings) or imported_sources(config, settings))


def models_from_scratch(config: Config) -> list[str]:
    """Models whose base is trained here."""
    bases = {name: model.get("base", {}) for name, model in config["models"].items()}
    return [name for name, base in bases.items() if "from_scratch" in base]


def trained_tasks(config: Config) -> set[str]:
    """Tasks for which some patch of the study is trained, not brought."""
    brought = existing_patches(config)
    return {cell.task for cell in cells(config) if cell.patch and cell.patch not in brought}


def obtained_versions(config: Config) -> list[str]:
    """Names of versions that some model obtains instead of evolving them."""
    return sorted({version for model in config["models"] for version in sources(config, model)})


def _statistics(config: Config, kind: str) -> dict[str, Any]:
    """The settings of the statistics that a kind of table or figure computes, if it does any."""
    drawn = ("level", "resamples", "seed")
    names = {
        "main": drawn,
        "recovery": drawn,
        "comparisons": ("margin", *drawn),
        **dict.fromkeys(("seeds", "trend", "lifetime", "loss_slices", "scaling"), ("level",)),
    }
    chosen_here = {name: config["statistics"][name] for name in names.get(kind, ())}
    return {"statistics": chosen_here} if chosen_here else {}


def table_settings(config: Config, table: str) -> dict[str, Any]:
    """What a table needs: its own settings, and of the study what its kind reads."""
    settings = config["tables"][table]
    kind = settings["kind"]
    if kind in ("versions", "norms", "efficiency", "costs", "provenance", *MEASURED):
        return settings
    return {**settings, **_of_scores(config, settings)}


def figure_settings(config: Config, figure: str) -> dict[str, Any]:
    """What a figure of scores needs: its own settings, and of the study what its kind reads."""
    settings = config["figures"][figure]
    if settings["kind"] in MEASURED:
        return {**settings, **_statistics(config, settings["kind"])}
    if settings["kind"] == "scaling":
        return {**settings, "methods": config["methods"], **_statistics(config, "scaling")}
    return {**settings, **_of_scores(config, settings)}


def _of_scores(config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    kind = settings["kind"]
    wanted = settings.get("arms", chosen(config, "arms"))
    found = _statistics(config, kind)
    if kind == "recovery":
        found["recovery"] = config["recovery"]
    if kind == "comparisons":
        found["recovery"] = {
            name: value for name, value in config["recovery"].items() if name != "minimum_gain"
        }
        found["ported"] = settings.get("arms", [config["recovery"]["ported"]])
        wanted = chosen(config, "arms")
    if kind in TEMPORAL:
        models = dict.fromkeys([*chosen(config, "models"), *imported_names(config, "models")])
        found["updates"] = {model: updates(config, model) for model in models}
    if kind == "trend":
        found["lifetime"] = config["lifetime"]
    return {"arms": {arm: config["arms"][arm] for arm in wanted}, **found}
