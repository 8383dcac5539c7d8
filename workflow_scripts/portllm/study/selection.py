"""Select the cells and scoring jobs of a study that a table or figure shows."""

from collections.abc import Callable, Mapping
from typing import Any

from portllm.study import matrix
from portllm.study.matrix import Cell, Config, Job, Patch

Settings = Mapping[str, Any]
ArmCells = dict[str, set[Cell]]
"""Cells of one scoring job, by the arms that select them."""


def _is_selected(cell: Cell, settings: Settings) -> bool:
    return (
        cell.model in settings.get("models", [cell.model])
        and cell.task in settings.get("tasks", [cell.task])
        and cell.applied_to in settings.get("versions", [cell.applied_to])
    )


def selected_cells(config: Config, settings: Settings) -> list[Cell]:
    """List the cells that a table or figure selects by its models, tasks and versions."""
    return [cell for cell in matrix.cells(config) if _is_selected(cell, settings)]


def compared_cells(config: Config, settings: Settings) -> list[Cell]:
    """List the selected ports for which the study also trains a patch on the same version.

    One for each patch and version, however many methods the study ports it with.
    """
    cells = matrix.cells(config)
    trained = {cell.patch for cell in cells} - matrix.existing_patches(config).keys()
    compared: dict[tuple[Patch | None, str], Cell] = {}
    for cell in cells:
        is_port = cell.is_ported and _is_selected(cell, settings)
        if is_port and matrix.native_patch(cell) in trained:
            compared.setdefault((cell.patch, cell.applied_to), cell)
    return list(compared.values())


def measured_cells(config: Config, settings: Settings) -> list[Cell]:
    """List the compared ports whose patch was trained on a version of the study."""
    return [
        cell
        for cell in compared_cells(config, settings)
        if cell.trained_on in matrix.versions(config, cell.model)
    ]


def scaled_cells(config: Config, settings: Settings) -> list[Cell]:
    """List the selected ports that apply a multiple of the patch."""
    return [
        cell
        for cell in selected_cells(config, settings)
        if cell.is_ported and config["methods"][cell.method]["kind"] == "scaled"
    ]


def moved_versions(config: Config) -> list[tuple[str, str]]:
    """List models and versions whose distance from the base can be measured."""
    return [
        (model, version)
        for model in matrix.chosen(config, "models")
        if "base" in config["models"][model]
        for version in matrix.versions(config, model)
        if version != matrix.BASE
    ]


def jobs_with_arms(
    config: Config, settings: Settings, is_read: Callable[[ArmCells], bool]
) -> list[Job]:
    """Return the selected scoring jobs whose arms fulfil a condition.

    Args:
        config: The study.
        settings: The table's or figure's own settings.
        is_read: The condition on a job's cells by arm; every arm has at least one cell.

    """
    jobs: dict[Job, ArmCells] = {}
    for model in matrix.chosen(config, "models"):
        for task in matrix.chosen(config, "tasks"):
            for arm in matrix.chosen(config, "arms"):
                for cell in matrix.arm_cells(config, arm, model, task):
                    if _is_selected(cell, settings):
                        arms = jobs.setdefault((model, cell.applied_to, task), {})
                        arms.setdefault(arm, set()).add(cell)
    return [job for job, arms in jobs.items() if is_read(arms)]


def imported_sources(config: Config, settings: Settings) -> list[str]:
    """Return the sources of imported scores that a table or figure selects from."""

    def is_selected(source: dict[str, Any], names: str) -> bool:
        return not set(source[names]).isdisjoint(settings.get(names, source[names]))

    return [
        name
        for name, source in config["imported"].items()
        if all(is_selected(source, names) for names in ("models", "tasks", "versions"))
    ]
