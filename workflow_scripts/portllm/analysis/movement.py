"""How far a version lies from its base, weight by weight."""

import math
from pathlib import Path

from portllm.errors import InputError
from portllm.weights.checkpoints import Checkpoint

PIECE = 1 << 22
"""Elements that are summed at a time, so that an embedding is never held in float64."""


def movement(base: Path, version: Path) -> dict[str, float | int]:
    """Frobenius norms of θ, θ′ − θ and their ratio, over all weights that both have.

    Tensors are read one at a time and summed in float64. Raises InputError where a weight is
    missing or has another shape.
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
                f"{version}: {name} has shape {list(tensor.shape)}, "
                f"{list(original.shape)} in {base}"
            )
        pieces = zip(tensor.flatten().split(PIECE), original.flatten().split(PIECE), strict=True)
        for after, before in pieces:
            squares["base"] += float((before.double() ** 2).sum())
            squares["difference"] += float(((after.double() - before.double()) ** 2).sum())
        compared += tensor.numel()
    return {
        "parameters": compared,
        "base_norm": math.sqrt(squares["base"]),
        "difference_norm": math.sqrt(squares["difference"]),
        "relative": math.sqrt(squares["difference"] / squares["base"]),
    }
