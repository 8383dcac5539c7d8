"""How checkpoints store numbers, and the dtype in which sums of them are computed.

Reading needs numpy only: importing torch takes seconds. numpy has no bfloat16, but a bfloat16 is
the upper half of a float32, so widening is an integer operation.
"""

import numpy
from numpy import ndarray

# safetensors' names of dtypes and their numpy dtypes; a bfloat16 is held as its bits.
STORED = {
    "F64": numpy.dtype("<f8"),
    "F32": numpy.dtype("<f4"),
    "F16": numpy.dtype("<f2"),
    "BF16": numpy.dtype("<u2"),
}
EXPECTED = f"expected one of {', '.join(STORED)}"


def arithmetic(dtype: str) -> str:
    """Return the dtype for sums of stored numbers: wider, so only the final rounding shows.

    Takes and returns safetensors' names.
    """
    return "F64" if dtype in ("F32", "F64") else "F32"


def widened(stored: ndarray, dtype: str) -> ndarray:
    """Convert stored numbers to their `arithmetic` dtype, exactly."""
    if dtype != "BF16":
        return stored.astype(STORED[arithmetic(dtype)])
    wide = numpy.zeros((*stored.shape, 2), numpy.uint16)
    wide[..., 1] = stored
    return wide.view("<f4")[..., 0]
