"""Measure how far a version's weights have moved from the base."""

import math
from pathlib import Path

from portllm.errors import InputError
from portllm.weights.checkpoints import Checkpoint

PIECE = 1 << 22
"""Elements converted to float64 at a time, so that no embedding is held in float64 whole."""


def movement(base: Path, version: Path) -> dict[str, float | int]:
    """Return the Frobenius norms of θ and θ′ − θ, and their ratio, over all weights of θ′.

    Tensors are read one at a time and summed in float64.

    Args:
        base: directory of θ.
        version: directory of θ′.

    Raises:
        InputError: θ lacks a weight of θ′, or has it with another shape, or the weight is not
            finite in one of them.
    """
    originals = Checkpoint(base)
    squares = {"base": 0.0, "difference": 0.0}
    compared = 0
    for name, tensor in Checkpoint(version).tensors():
        if name not in originals.shard_of:
            raise InputError(f"{version}: weight {name} is not in {base}")
        original = originals.read(name)
        if original.shape != tensor.shape:
            raise InputError(
                f"{version}: found {name} with shape {list(tensor.shape)}, expected "
                f"{list(original.shape)} as in {base}"
            )
        pieces = zip(tensor.flatten().split(PIECE), original.flatten().split(PIECE), strict=True)
        for after, before in pieces:
            squares["base"] += float((before.double() ** 2).sum())
            squares["difference"] += float(((after.double() - before.double()) ** 2).sum())
        if not all(map(math.isfinite, squares.values())):
            place = version if math.isfinite(squares["base"]) else base
            raise InputError(
                f"{place}: weight {name} is not finite; fetch or train this version again"
            )
        compared += tensor.numel()
    return {
        "parameters": compared,
        "base_norm": math.sqrt(squares["base"]),
        "difference_norm": math.sqrt(squares["difference"]),
        "relative": math.sqrt(squares["difference"] / squares["base"]),
    }
