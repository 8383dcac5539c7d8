"""lm-eval's metrics: their values in a result, and how they are displayed."""

from typing import Any

import numpy

PROPORTIONS = ("acc", "acc_norm", "exact_match")
"""Metrics that are the share of correct items."""
PERCENTAGES = (*PROPORTIONS, "f1", "mcc")
"""Metrics that are shown in per cent."""


def is_proportion(metric: str) -> bool:
    """Whether a metric is the share of correct items."""
    return metric.partition(",")[0] in PROPORTIONS


def factor(metric: str) -> float:
    """Return the factor that a score is multiplied by for display: 100 for percentages."""
    return 100.0 if metric.partition(",")[0] in PERCENTAGES else 1.0


def parse(measured: dict[str, Any], count: int) -> dict[str, dict[str, float | int | None]]:
    """Return value, standard error and n of each metric, by name and filter (`acc,none`).

    Args:
        measured: One task's entry in lm-eval's `results`.
        count: The number of items.

    Returns:
        The metrics. `stderr` is None where lm-eval did not compute it ("N/A").

    """
    parsed = {}
    for name, value in measured.items():
        metric, _, variant = name.partition(",")
        if not variant or metric.endswith("_stderr"):
            continue
        stderr = measured.get(f"{metric}_stderr,{variant}")
        numeric = isinstance(stderr, int | float | numpy.number)
        parsed[name] = {
            "value": float(value),
            "stderr": float(stderr) if numeric else None,
            "n": count,
        }
    return parsed
