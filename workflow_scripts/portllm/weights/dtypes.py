"""Numbers as checkpoints store them, in numpy: widened for arithmetic, rounded once afterwards.

numpy has no bfloat16. A bfloat16 is the upper half of a float32, so both ways are integer
operations, and torch, whose import costs seconds, is not needed.
"""

import numpy
from numpy import ndarray

# safetensors' names and how numpy holds them; a bfloat16 is held as its bits.
STORED = {
    "F64": numpy.dtype("<f8"),
    "F32": numpy.dtype("<f4"),
    "F16": numpy.dtype("<f2"),
    "BF16": numpy.dtype("<u2"),
}
EXPECTED = f"expected one of {', '.join(STORED)}"


def arithmetic(dtype: str) -> numpy.dtype:
    """What sums are made in: wider than the stored dtype, so that only its own rounding shows."""
    return numpy.dtype(numpy.float64 if dtype in ("F32", "F64") else numpy.float32)


def widened(stored: ndarray, dtype: str) -> ndarray:
    """Stored numbers in the dtype of `arithmetic`; exact."""
    if dtype != "BF16":
        return stored.astype(arithmetic(dtype))
    wide = numpy.zeros((*stored.shape, 2), numpy.uint16)
    wide[..., 1] = stored
    return wide.view("<f4")[..., 0]


def rounded(wide: ndarray, dtype: str) -> ndarray:
    """Numbers of the dtype of `arithmetic` rounded to the nearest stored one, ties to even.

    Overwrites `wide`. Infinities stay, as do NaNs whose lower half is empty, which those made of
    bfloat16 numbers and of the processor's own NaN are.
    """
    if dtype != "BF16":
        with numpy.errstate(over="ignore"):
            return wide.astype(STORED[dtype])
    bits = wide.view(numpy.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    bits += odd
    return bits.view("<u2")[..., 1::2]
