"""Checks of numbers that decide weights."""

import math
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError

if TYPE_CHECKING:
    from numpy import ndarray

MOST = (2 - 2**-23) * 2.0**127
"""The largest number that float32 can hold."""


def check_finite(value: Any, place: str) -> None:
    """Raise InputError, which starts with `place`, unless float32 can hold the number `value`.

    JSON and YAML parsers accept NaN and Infinity, and read 1e400 as infinity.
    """
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first, because an integer may be too large for a float.
    if not usable or abs(value) > MOST or math.isnan(value):
        raise InputError(
            f"{place}: found {value!r:.60}, expected a finite number up to {MOST:.3g} in magnitude"
        )


def check_all_finite(tensor: "ndarray", place: str) -> None:
    """Raise InputError, which starts with `place`, unless all numbers of a tensor are finite."""
    import numpy

    if not numpy.isfinite(tensor).all():
        raise InputError(f"{place}: found NaN or infinity, expected finite numbers")
