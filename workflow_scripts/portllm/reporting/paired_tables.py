"""The tables that compare arms item by item: recovery, comparisons, seeds.

Their sources are result files of scoring jobs, whose items lie beside them
(`portllm.comparison.item_scores`).
"""

import math
from pathlib import Path

import pandas

from portllm import statistics
from portllm.comparison import arm_comparisons as compared
from portllm.comparison import score_table
from portllm.reporting.formatting import ExhibitSettings, Table, column_names, p_text, range_text
from portllm.scoring import metrics


def recovery_numbers(sources: list[Path], settings: ExhibitSettings) -> pandas.DataFrame:
    """Gain of re-fine-tuning and the share of it that the port recovers, per version and task.

    `sources` are the table of scores and the result files of scoring jobs. recovery = (ported −
    zero-shot) / (re-fine-tuned − zero-shot), as a share with its interval; missing where the gain
    is within noise or below the least that the study states. Scores without items, made elsewhere,
    have no interval, and their noise is judged by their standard errors as if they were not paired.
    """
    roles = {role: settings["recovery"][role] for role in ("zero_shot", "ported", "re_fine_tuned")}
    # A pivot would sort the rows; a pivot table can keep the study's order.
    found = score_table.of_chosen_arms(sources[0], settings)
    counts = score_table.item_counts(found)
    wide = found.pivot_table(
        index=compared.PLACE, columns="arm", values=["value", "stderr"], sort=False
    )
    values, errors = (
        wide[name].reindex(columns=list(roles.values())).set_axis(list(roles), axis=1)
        for name in ("value", "stderr")
    )
    values = values.dropna()
    gain = values["re_fine_tuned"] - values["zero_shot"]
    noise = errors["re_fine_tuned"].pow(2) + errors["zero_shot"].pow(2)
    numbers = values.assign(
        gain=gain,
        gain_low=gain
        - statistics.normal_interval(0, 1, settings["statistics"]["level"])[1]
        * noise.pow(0.5).reindex(values.index),
    )
    numbers["recovery"] = (values["ported"] - values["zero_shot"]) / gain.where(gain != 0)
    paired = compared.recoveries(sources[1:], settings).set_index(compared.PLACE)
    # Arms that do not have all their seeds in common are compared on those that they have.
    numbers.update(paired.rename(columns={"value": "recovery"})[["gain_low", "recovery"]])
    numbers = numbers.join(paired[["gain_high", "low", "high", "seeds"]])
    stated = (numbers["gain_low"] > 0) & (gain >= settings["recovery"]["minimum_gain"])
    for column in ("recovery", "low", "high"):
        numbers[column] = numbers[column].where(stated)
    numbers = numbers.reset_index()
    tasks = zip(numbers["task"], numbers["metric"], strict=True)
    level = settings["statistics"]["level"]
    return numbers.assign(n=[counts[pair] for pair in tasks], level=level)


def recovery(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Recovery per version and task, and its mean over all rows that state one."""
    numbers = recovery_numbers(sources, settings)
    shown = numbers[compared.PLACE].copy()
    shown["n"] = numbers["n"].astype(str)
    for column in ("zero_shot", "ported", "re_fine_tuned", "gain"):
        pairs = zip(numbers[column], numbers["metric"], strict=True)
        shown[column] = [f"{value * metrics.factor(metric):.1f}" for value, metric in pairs]
    ranges = zip(*(numbers[column] for column in ("recovery", "low", "high")), strict=True)
    shown["recovery"] = [_share_text(*row) for row in ranges]
    mean = dict.fromkeys(shown.columns, "")
    stated = int(numbers["recovery"].notna().sum())
    mean |= {
        "model": f"mean of {stated} of {len(numbers)}",
        "recovery": _share_text(numbers["recovery"].mean()),
    }
    text = pandas.concat([shown, pandas.DataFrame([mean])], ignore_index=True)
    text = text.rename(columns={"applied_to": "version"})
    text.columns = [name.replace("_", "-") for name in text.columns]
    return Table(numbers, text)


def _share_text(value: float, low: float = math.nan, high: float = math.nan) -> str:
    if pandas.isna(value):
        return "–"
    return f"{value:.0%}" + ("" if pandas.isna(low) else f" [{low:.0%}, {high:.0%}]")


def _task_names(numbers: pandas.DataFrame) -> list[str]:
    names = column_names(numbers)
    return [names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)]


def _ranges(numbers: pandas.DataFrame, name: str, low: str, high: str, **form: bool) -> list[str]:
    columns = (numbers[column] for column in (name, low, high, "metric"))
    return [range_text(*row, **form) for row in zip(*columns, strict=True)]


def comparisons(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Ported against re-fine-tuned and against no patch: difference, equivalence, flips."""
    numbers = compared.compare(sources, settings)
    level, margin = (settings["statistics"][name] for name in ("level", "margin"))
    differences = _ranges(numbers, "value", "low", "high", signed=True)
    text = pandas.DataFrame(
        {
            "model": numbers["model"],
            "version": numbers["applied_to"],
            "task": _task_names(numbers),
            "arm": numbers["arm"],
            "against": numbers["against"],
            "n": numbers["n"],
            "seeds": numbers["seeds"],
            f"difference, points [{level:.0%}]": differences,
            "p": [p_text(value) for value in numbers["p_value"]],
            "p, corrected": [p_text(value) for value in numbers["p_value_holm"]],
            f"within ±{margin:g} points": numbers["comparable"].fillna("–"),
            "newly wrong, % of n": _ranges(numbers, "negative", "negative_low", "negative_high"),
            "newly right, % of n": _ranges(numbers, "positive", "positive_low", "positive_high"),
        }
    )
    return Table(numbers, _narrowed(text))


def seeds(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Mean and standard deviation over seeds, and how much of the noise is the items' own."""
    numbers = compared.seeds(sources, settings)
    level = settings["statistics"]["level"]

    def points(name: str) -> list[str]:
        pairs = zip(numbers[name], numbers["metric"], strict=True)
        return [
            "–" if pandas.isna(value) else f"{value * metrics.factor(metric):.1f}"
            for value, metric in pairs
        ]

    spread = zip(points("mean"), points("sd"), strict=True)
    text = pandas.DataFrame(
        {
            "model": numbers["model"],
            "version": numbers["applied_to"],
            "task": _task_names(numbers),
            "arm": numbers["arm"],
            "n": numbers["n"],
            "seeds": numbers["seeds"],
            "mean ± sd": [f"{mean} ± {sd}" for mean, sd in spread],
            "item noise": points("item_stderr"),
            "seed noise": points("seed_stderr"),
            "residual": points("residual_stderr"),
            f"mean [{level:.0%}]": _ranges(numbers, "mean", "low", "high"),
        }
    )
    return Table(numbers, _narrowed(text))


def _narrowed(text: pandas.DataFrame) -> pandas.DataFrame:
    """The table less a column of models, or of seeds, that says the same in every row."""
    same = [name for name in ("model", "seeds") if name in text and text[name].nunique() == 1]
    return text.drop(columns=[name for name in same if name == "model" or text[name].iloc[0] == 1])
