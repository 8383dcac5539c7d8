"""Check that runs answered the same items of the same task version."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

from portllm.errors import InputError


@dataclass(frozen=True)
class Run:
    """The items of one run.

    Attributes:
        name: the run in error messages.
        task_version: the version of the task.
        items: an identifier of each item, in the order of `values`.
        values: (items,) numbers or (items, 2) pairs of gold and predicted class.
        tied: worst and best value of each item whose choice was a tie, by the item's position.
    """

    name: str
    task_version: str
    items: tuple[str, ...]
    values: NDArray
    tied: dict[int, tuple[float, float]] = field(default_factory=dict)

    def bounds(self) -> tuple[NDArray, NDArray]:
        """Return the values with every tie broken for the worst, and for the best."""
        worst, best = self.values.copy(), self.values.copy()
        for position, (low, high) in self.tied.items():
            worst[position], best[position] = low, high
        return worst, best


def check_same_items(first: Run, second: Run) -> None:
    """Check that two runs answered the same items of the same task version.

    Raises:
        InputError: they did not; names both runs and the first item that differs.
    """
    if first.task_version != second.task_version:
        raise InputError(
            f"{second.name}: found task version {second.task_version}, expected "
            f"{first.task_version} as in {first.name}"
        )
    if first.items == second.items:
        return
    longest = max(len(first.items), len(second.items))
    padded = [run.items + ("none",) * (longest - len(run.items)) for run in (first, second)]
    index = next(i for i, (one, other) in enumerate(zip(*padded, strict=True)) if one != other)
    raise InputError(
        f"{second.name}: found {len(second.items)} items, expected the {len(first.items)} of "
        f"{first.name}; first difference: found item {padded[1][index]}, expected "
        f"{padded[0][index]}"
    )


def stacked(runs: Sequence[Run]) -> NDArray:
    """Stack the values of runs over the same items: (items, runs) or (items, runs, 2).

    Raises:
        InputError: the runs have different items.
    """
    for run in runs[1:]:
        check_same_items(runs[0], run)
    return numpy.stack([run.values for run in runs], axis=1)
