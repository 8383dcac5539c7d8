"""What makes two runs comparable: the same items of the same version of a task."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from portllm.errors import InputError


@dataclass(frozen=True)
class Run:
    """One run's items: what identifies each, and what it scored.

    `items` are in the order of `values`, (items,) or (items, 2); `name` is how people know the run.
    """

    name: str
    task_version: str
    items: tuple[str, ...]
    values: NDArray


def check_same_items(first: Run, second: Run) -> None:
    """Refuse two runs that did not answer the same items of the same task version.

    Raises InputError that names both runs, their numbers of items and the first that differs.
    """
    if first.task_version != second.task_version:
        raise InputError(
            f"{second.name}: found version {second.task_version} of the task, expected that of "
            f"{first.name}, which is {first.task_version}"
        )
    if first.items == second.items:
        return
    longest = max(len(first.items), len(second.items))
    padded = [run.items + ("none",) * (longest - len(run.items)) for run in (first, second)]
    place = next(i for i, (one, other) in enumerate(zip(*padded, strict=True)) if one != other)
    raise InputError(
        f"{second.name}: found {len(second.items)} items, expected the {len(first.items)} of "
        f"{first.name}; the first that differs is item {padded[1][place]}, expected "
        f"{padded[0][place]}"
    )


def stacked(runs: Sequence[Run]) -> NDArray:
    """Values of runs that share their items, one column for each: (items, runs) or (…, 2)."""
    for run in runs[1:]:
        check_same_items(runs[0], run)
    return numpy.stack([run.values for run in runs], axis=1)
