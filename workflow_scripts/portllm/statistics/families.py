"""Corrections for testing several hypotheses at once."""

from collections.abc import Sequence

import numpy
from statsmodels.stats.multitest import multipletests

from portllm.errors import InputError


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm (1979), in their order.

    The chance of any false rejection in the family is at most α, whatever the tests depend on. An
    empty family stays empty. Raises InputError for a value that is no probability.
    """
    values = numpy.asarray(p_values, dtype=float)
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise InputError(f"found a p-value of {wrong[0]}, expected one between 0 and 1")
    return multipletests(values, method="holm")[1].tolist() if values.size else []
