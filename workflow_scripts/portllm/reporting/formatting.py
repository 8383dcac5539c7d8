"""The finished table, and functions that format numbers for people."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas

from portllm import statistics
from portllm.scoring import metrics


@dataclass(frozen=True)
class Table:
    """A table as numbers (CSV) and as text (Markdown, LaTeX), with notes below the text."""

    numbers: pandas.DataFrame
    text: pandas.DataFrame
    notes: tuple[str, ...] = ()


def value_text(value: float, stderr: float, metric: str) -> str:
    """Format a score with its standard error, in per cent if the metric is a share."""
    factor = metrics.factor(metric)
    shown = f"{value * factor:.1f}"
    return shown if pandas.isna(stderr) else f"{shown} ± {stderr * factor:.1f}"


def hours_text(values: Iterable[float]) -> list[str]:
    """Format hours with four decimals; values below 0.0001 become "<0.0001"."""
    smallest = 1e-4
    return [f"<{smallest:.4f}" if 0 < value < smallest else f"{value:.4f}" for value in values]


def memory_text(values: Iterable[float]) -> list[str]:
    """Format bytes in gigabytes."""
    return ["–" if pandas.isna(value) else f"{value / 1e9:.2f}" for value in values]


def published_text(value: float, difference: float, possible: bool, metric: str) -> str:
    """Format a published score and our difference; a star marks an impossible score."""
    factor = metrics.factor(metric)
    star = "" if possible else "*"
    return f" [{value * factor:.2f}{star}, {difference * factor:+.1f}]"


def column_names(table: pandas.DataFrame) -> dict[tuple[str, str], str]:
    """Return a name for each task and metric: the task, with the metric if it has several."""
    pairs = list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))
    tasks = [task for task, _ in pairs]
    names = {}
    for task, metric in pairs:
        name, _, variant = metric.partition(",")
        several = {m.partition(",")[0] for t, m in pairs if t == task}
        detail = variant if len(several) == 1 else name
        names[task, metric] = task if tasks.count(task) == 1 else f"{task} ({detail})"
    return names


def range_text(value: float, low: float, high: float, metric: str, *, signed: bool = False) -> str:
    """Format a number with its interval, in per cent if the metric is a share."""
    if pandas.isna(value):
        return "–"
    sign = "+" if signed else ""
    factor = metrics.factor(metric)
    shown, *ends = (f"{number * factor:{sign}.1f}" for number in (value, low, high))
    if pandas.isna(low):
        return f"{shown} [–]".replace("-", "−")
    # A typographic minus, to match the plus signs.
    return f"{shown} [{ends[0]}, {ends[1]}]".replace("-", "−")


def range_texts(
    numbers: pandas.DataFrame, name: str, low: str, high: str, *, signed: bool = False
) -> list[str]:
    """Format a column of numbers, each with its interval from two other columns."""
    columns = (numbers[column] for column in (name, low, high, "metric"))
    return [range_text(*row, signed=signed) for row in zip(*columns, strict=True)]


def points_texts(numbers: pandas.DataFrame, name: str) -> list[str]:
    """Format a column of differences, in points if the metric is a share."""
    pairs = zip(numbers[name], numbers["metric"], strict=True)
    return [f"{value * metrics.factor(m):+.1f}".replace("-", "−") for value, m in pairs]


def task_names(numbers: pandas.DataFrame) -> list[str]:
    """Return the task of each row, with its metric if the task has several."""
    names = column_names(numbers)
    return [names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)]


def without_one(text: pandas.DataFrame) -> pandas.DataFrame:
    """Drop the column of models if there is only one model, and of seeds if all are 1."""
    same = [name for name in ("model", "seeds") if name in text and text[name].nunique() == 1]
    return text.drop(columns=[name for name in same if name == "model" or text[name].iloc[0] == 1])


def p_text(value: float) -> str:
    """Format a p-value with three decimals; smaller ones become "<0.001"."""
    if pandas.isna(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def level_text(level: float) -> str:
    """Format a confidence level in per cent."""
    return f"{100 * level:g} %"


def score_interval(
    value: float, stderr: float, n: float, metric: str, level: float
) -> tuple[float, float]:
    """Return a score's interval without its items.

    Wilson's for the share of correct items; else normal, from lm-eval's standard error, which is a
    bootstrap for metrics without a closed form, such as F1. A standard error of zero (all resamples
    equal) gives NaN.
    """
    if metrics.is_proportion(metric):
        return statistics.proportion_interval(value, int(n), level)
    if not stderr > 0:
        return math.nan, math.nan
    return statistics.normal_interval(value, stderr, level)


def with_intervals(numbers: pandas.DataFrame, level: float) -> pandas.DataFrame:
    """Add the columns `low`, `high`, `interval` (its kind) and `level` to scores."""
    columns = (numbers[name] for name in ("value", "stderr", "n", "metric"))
    ends = [score_interval(*row, level) for row in zip(*columns, strict=True)]
    kinds = [
        statistics.WILSON if metrics.is_proportion(metric) else statistics.NORMAL
        for metric in numbers["metric"]
    ]
    return numbers.assign(
        low=[low for low, _ in ends], high=[high for _, high in ends], interval=kinds, level=level
    )
