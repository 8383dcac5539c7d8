"""Checks of numbers that decide weights."""

import math
import sys
from typing import Any

from portllm.errors import InputError


def check_finite(value: Any, place: str) -> None:
    """Raise InputError, which starts with `place`, unless `value` is a finite number.

    JSON and YAML parsers accept NaN and Infinity, and read 1e400 as infinity.
    """
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first, because an integer may be too large for a float.
    if not usable or abs(value) > sys.float_info.max or math.isnan(value):
        raise InputError(f"{place}: found {value!r:.60}, expected a finite number")
