"""A table, and how numbers are written for people."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas

from portllm import statistics
from portllm.scoring import metrics


@dataclass(frozen=True)
class Table:
    """Numbers for machines, the same as text for people, and lines to stand under the text."""

    numbers: pandas.DataFrame
    text: pandas.DataFrame
    notes: tuple[str, ...] = ()


def value_text(value: float, stderr: float, metric: str) -> str:
    """A score with its standard error, per cent where the metric is a share."""
    factor = metrics.factor(metric)
    shown = f"{value * factor:.1f}"
    return shown if pandas.isna(stderr) else f"{shown} ± {stderr * factor:.1f}"


def hours_text(values: Iterable[float]) -> list[str]:
    """Hours to four digits behind the point; less than these can show is not shown as none."""
    smallest = 1e-4
    return [f"<{smallest:.4f}" if 0 < value < smallest else f"{value:.4f}" for value in values]


def memory_text(values: Iterable[float]) -> list[str]:
    """Bytes as gigabytes."""
    return ["–" if pandas.isna(value) else f"{value / 1e9:.2f}" for value in values]


def published_text(value: float, difference: float, possible: bool, metric: str) -> str:
    """A published score beside ours; a star marks one that no number of right answers gives."""
    factor = metrics.factor(metric)
    star = "" if possible else "*"
    return f" [{value * factor:.2f}{star}, {difference * factor:+.1f}]"


def column_names(table: pandas.DataFrame) -> dict[tuple[str, str], str]:
    """A task's name, with the metric where the task has several."""
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
    """A number with its interval, per cent where the metric is a share."""
    if pandas.isna(value):
        return "–"
    sign = "+" if signed else ""
    factor = metrics.factor(metric)
    shown, *ends = (f"{number * factor:{sign}.1f}" for number in (value, low, high))
    if pandas.isna(low):
        return f"{shown} [–]".replace("-", "−")
    # A minus as people write it, in text that stands beside plus signs.
    return f"{shown} [{ends[0]}, {ends[1]}]".replace("-", "−")


def range_texts(
    numbers: pandas.DataFrame, name: str, low: str, high: str, *, signed: bool = False
) -> list[str]:
    """A column of numbers as text, each with its interval from two other columns."""
    columns = (numbers[column] for column in (name, low, high, "metric"))
    return [range_text(*row, signed=signed) for row in zip(*columns, strict=True)]


def task_names(numbers: pandas.DataFrame) -> list[str]:
    """The task of each row, with its metric if the task has several."""
    names = column_names(numbers)
    return [names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)]


def without_one(text: pandas.DataFrame) -> pandas.DataFrame:
    """A table without its column of models if there is one model, and of seeds if there is one."""
    same = [name for name in ("model", "seeds") if name in text and text[name].nunique() == 1]
    return text.drop(columns=[name for name in same if name == "model" or text[name].iloc[0] == 1])


def p_text(value: float) -> str:
    """A p-value; very small ones by their bound."""
    if pandas.isna(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def level_text(level: float) -> str:
    """The level of an interval, in per cent."""
    return f"{100 * level:g} %"


def score_interval(
    value: float, stderr: float, n: float, metric: str, level: float
) -> tuple[float, float]:
    """A score's interval where its items are not at hand.

    Wilson's for a share of right items; else normal, from the standard error, which is lm-eval's
    bootstrap where the metric has no closed form, as F1 has none. A standard error of zero, where
    no resample differed, gives no interval.
    """
    if metrics.is_proportion(metric):
        return statistics.proportion_interval(value, int(n), level)
    if not stderr > 0:
        return math.nan, math.nan
    return statistics.normal_interval(value, stderr, level)


def with_intervals(numbers: pandas.DataFrame, level: float) -> pandas.DataFrame:
    """Scores with the ends of their intervals, `low` and `high`, their kind and their level."""
    columns = (numbers[name] for name in ("value", "stderr", "n", "metric"))
    ends = [score_interval(*row, level) for row in zip(*columns, strict=True)]
    kinds = [
        statistics.WILSON if metrics.is_proportion(metric) else statistics.NORMAL
        for metric in numbers["metric"]
    ]
    return numbers.assign(
        low=[low for low, _ in ends], high=[high for _, high in ends], interval=kinds, level=level
    )
