"""Correct p-values for multiple tests."""

from collections.abc import Sequence

import numpy
from statsmodels.stats.multitest import multipletests

from portllm.errors import InputError


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm (1979), keeping their order.

    Controls the family-wise error rate at α under any dependence of the tests.

    Raises:
        InputError: a value is not between 0 and 1.
    """
    values = numpy.asarray(p_values, dtype=float)
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise InputError(f"found a p-value of {wrong[0]}, expected one between 0 and 1")
    return multipletests(values, method="holm")[1].tolist() if values.size else []
