"""Run the workflow from another directory (`snakemake -s … -d …`) or as a module of a workflow."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINK = Path(".snakemake/portllm")
"""Leads from the working directory to the workflow's."""


def stable_path(checkout: Path, link: Path = LINK) -> Path:
    """Return a path to the workflow's directory that stays the same if the checkout moves.

    Snakemake reruns jobs whose inputs have other paths. In the checkout itself the path is `.`;
    elsewhere it is a symbolic link in the working directory's `.snakemake`.
    """
    if checkout.resolve() == Path.cwd().resolve():
        return Path()
    if link.is_symlink() and link.resolve() == checkout.resolve():
        return link
    new = link.with_name(f"{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(checkout.resolve())
        # Atomic, since running jobs may use the link.
        new.replace(link)
    except OSError:
        # A working directory that cannot be written to is enough for a dry run.
        return Path(os.path.relpath(checkout))
    return link


@dataclass(frozen=True)
class Placement:
    """Where the workflow is and what it is called in a run.

    Attributes:
        checkout: the workflow's directory.
        directory: a path to it that stays the same if the checkout moves.
        results: the directory of results, with the `prefix:` of a module.
        logs: the directory of logs, likewise.
        is_module: whether another workflow imports this one.
        name_in_run: gives a rule's name in the run; a module's rules get other names by
            `use rule … as …`.
    """

    checkout: Path
    directory: Path
    results: Path
    logs: Path
    is_module: bool
    name_in_run: Callable[[str], str]


def place(workflow: Any, checkout: Path) -> Placement:
    """Return the placement of a workflow. Call this while Snakemake reads its files."""
    modifier = workflow.modifier

    def path_of(variable: str) -> Path:
        return Path(modifier.path_modifier.replace_prefix(workflow.pathvars.apply(variable)))

    return Placement(
        checkout=checkout,
        directory=stable_path(checkout),
        results=path_of("<results>"),
        logs=path_of("<logs>"),
        is_module=not modifier.is_main_snakefile(),
        name_in_run=modifier.modify_rulename,
    )


def is_first(workflow: Any, what: object) -> bool:
    """Return whether this is the first call for a workflow and a key.

    Each `use rule … from module` reads the module again; what attends to the run is set up once.
    """
    attended: set[object] = workflow.__dict__.setdefault("_portllm_attended", set())
    if what in attended:
        return False
    attended.add(what)
    return True
