"""Find weights, and numbers that decide weights, that are not finite, i.e. NaN or infinite.

A model or patch with such weights still gives scores: an argmax over NaN is always the first
choice. So every stage checks the weights that it reads or writes.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError
from portllm.weights.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

MOST = (2 - 2**-23) * 2.0**127
"""The largest number that float32 can hold."""


def is_finite(tensor: "Tensor") -> bool:
    """Whether all numbers of a tensor are finite."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # aminmax does not support 8-bit floats
    # A NaN is both minimum and maximum. Unlike isfinite, this allocates no second tensor.
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def problem(tensors: "Iterable[tuple[str, Tensor]]", kind: str) -> str | None:
    """Describe the tensors that are not finite; None if all are.

    Args:
        tensors: name and values of each; only one at a time is needed in memory.
        kind: what they are, in the plural, such as "weights of results/models/demo/base".
    """
    total, damaged = 0, []
    for name, tensor in tensors:
        total += 1
        if not is_finite(tensor):
            damaged.append(name)
    if not damaged:
        return None
    return f"{len(damaged)} of {total} {kind} are not finite (first: {damaged[0]})"


def stored(path: Path) -> "Iterator[tuple[str, Tensor]]":
    """Yield name and values of each tensor of a safetensors file, read one at a time."""
    file = SafetensorsFile.open(path)
    for name in file.shapes:
        yield name, file.read_tensor(name)


def check(tensors: "Iterable[tuple[str, Tensor]]", kind: str, advice: str) -> None:
    """Raise InputError unless all tensors are finite.

    Args:
        tensors: as in `problem`.
        kind: as in `problem`.
        advice: what the user should change.
    """
    text = problem(tensors, kind)
    if text is not None:
        raise InputError(f"{text}; {advice}")


def check_number(value: Any, place: str) -> None:
    """Raise InputError, which starts with `place`, unless float32 can hold the number `value`.

    JSON and YAML parsers accept NaN and Infinity, and read 1e400 as infinity.
    """
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first, because an integer may be too large for a float.
    if not usable or abs(value) > MOST or math.isnan(value):
        raise InputError(
            f"{place}: found {value!r:.60}, expected a finite number up to {MOST:.3g} in magnitude"
        )


def check_array(array: "ndarray", place: str) -> None:
    """Raise InputError, which starts with `place`, unless all numbers of an array are finite."""
    import numpy

    if not numpy.isfinite(array).all():
        raise InputError(f"{place}: found NaN or infinity, expected finite numbers")
