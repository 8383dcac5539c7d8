"""How much of re-fine-tuning's gain a ported patch recovers, as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study import selection
from portllm.study.exhibits import ScoreExhibit, Settings, register
from portllm.study.matrix import Config, Job

if TYPE_CHECKING:
    import pandas

    from portllm.reporting.figure_style import Drawing
    from portllm.reporting.formatting import Table


class _Recovery(ScoreExhibit):
    kind = "recovery"
    section = "recovery"
    order = 10
    is_default = True
    statistics = ("level", "resamples", "seed")

    def item_jobs(self, config: Config, settings: Settings) -> list[Job]:
        """Return the jobs that scored all three arms of a recovery."""
        roles = config["recovery"]
        compared = {roles[role] for role in ("zero_shot", "ported", "re_fine_tuned")}
        return selection.jobs_with_arms(config, settings, lambda arms: compared <= arms.keys())

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether the study has a port and a patch trained on the same version."""
        return bool(selection.compared_cells(config, settings))

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return which arms are compared, too."""
        return {**super().study_settings(config, settings), "recovery": config["recovery"]}


@register
class RecoveryTable(_Recovery):
    """Recovery for each version and task, and its mean over all rows that state one."""

    group = "tables"
    summary = "the share of re-fine-tuning's gain that a port recovers"
    caption = """
        Recovery is (ported − zero-shot) / (re-fine-tuned − zero-shot), with its {level} interval by
        the paired bootstrap of the n items that the three arms share, and of the seeds if there are
        several. It is stated only where the gain of re-fine-tuning, the denominator, is beyond
        noise. The last row is the mean over the rows that state a recovery."""

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are the scores, then results of scoring jobs."""
        import pandas

        from portllm.comparison import arm_comparisons
        from portllm.reporting.formatting import Table
        from portllm.scoring import metrics

        numbers = recovery_numbers(sources, settings)
        shown = numbers[arm_comparisons.PLACE].copy()
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

    def headline(self, numbers: pandas.DataFrame) -> str | None:
        """Return the mean recovery and its range."""
        shares = numbers["recovery"].dropna()
        if shares.empty:
            return None
        left_out = len(numbers) - len(shares)
        gains = f"; {left_out} others gain too little to divide by" if left_out else ""
        return (
            f"Ported patches recover {_per_cent(shares.mean())} of what re-fine-tuning gains, a "
            f"mean over {len(shares)} comparisons ({_per_cent(shares.min())} to "
            f"{_per_cent(shares.max())}{gains})."
        )


@register
class RecoveryFigure(_Recovery):
    """Recovery for each version and task as bars with intervals."""

    group = "figures"
    summary = "the share of re-fine-tuning's gain that a port recovers"
    caption = """
        The share of re-fine-tuning's gain over the un-patched version that the ported patch
        recovers, without any training; the dashed line is re-fine-tuning itself. Lines are {level}
        intervals by the paired bootstrap of the n items. A bar is missing (n/a) where the gain of
        re-fine-tuning, the denominator, is within noise."""

    def make(self, sources: list[Path], settings: Settings) -> Drawing:
        """Return the figure; `sources` are the scores, then results of scoring jobs."""
        from portllm.reporting.bar_charts import grouped_bars
        from portllm.reporting.figure_style import Drawing
        from portllm.reporting.formatting import column_names, level_text

        numbers = recovery_numbers(sources, settings)
        named = column_names(numbers)
        columns = (numbers[name] for name in ("task", "metric", "n"))
        names = {
            (task, metric): f"{named[task, metric]}, n = {n}"
            for task, metric, n in zip(*columns, strict=True)
        }
        label = _version_label(numbers["model"])
        numbers = numbers.assign(
            version=numbers.apply(label, axis=1),
            column=[names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)],
        )

        def percent(name: str) -> pandas.DataFrame:
            wide = numbers.pivot(index="version", columns="column", values=name) * 100
            return wide.loc[
                list(dict.fromkeys(numbers["version"])), list(dict.fromkeys(names.values()))
            ]

        intervals = percent("low"), percent("high")
        level = level_text(settings["statistics"]["level"])
        note = f"lines: {level} intervals; dashed: re-fine-tuning"
        unit = "recovered gain (%)"
        figure = grouped_bars(percent("recovery"), settings, unit, intervals, note)
        for axes in figure.axes:
            axes.axhline(100, color="0.3", linewidth=0.8, linestyle="--")
        return Drawing(figure, numbers.drop(columns=["version", "column"]))


def recovery_numbers(sources: list[Path], settings: Settings) -> pandas.DataFrame:
    """Gain of re-fine-tuning and the share of it that the port recovers, per version and task.

    recovery = (ported − zero-shot) / (re-fine-tuned − zero-shot), as a share with its interval. It
    is missing where the gain is within noise or below the study's minimum. Imported scores have no
    items: they get no interval, and their noise is judged by their standard errors as if they were
    not paired.

    Args:
        sources: The table of scores, then results of scoring jobs.
        settings: Arms, recovery and statistics of the study.

    """
    from portllm import statistics
    from portllm.comparison import arm_comparisons, score_table

    place = arm_comparisons.PLACE
    roles = {role: settings["recovery"][role] for role in ("zero_shot", "ported", "re_fine_tuned")}
    scores = score_table.of_chosen_arms(sources[0], settings)
    counts = score_table.item_counts(scores)
    # Unlike a pivot, a pivot table can keep the study's order. It leaves out what is all missing,
    # such as the standard errors of single items.
    values, errors = (
        scores.pivot_table(index=place, columns="arm", values=name, sort=False)
        .reindex(columns=list(roles.values()))
        .set_axis(list(roles), axis=1)
        for name in ("value", "stderr")
    )
    values = values.dropna()
    errors = errors.reindex(values.index)
    gain = values["re_fine_tuned"] - values["zero_shot"]
    noise = errors["re_fine_tuned"].pow(2) + errors["zero_shot"].pow(2)
    numbers = values.assign(
        gain=gain,
        gain_low=gain
        - statistics.normal_interval(0, 1, settings["statistics"]["level"])[1]
        * noise.pow(0.5).reindex(values.index),
    )
    numbers["recovery"] = (values["ported"] - values["zero_shot"]) / gain.where(gain != 0)
    paired = arm_comparisons.recoveries(sources[1:], settings).set_index(place)
    # Arms without all seeds in common are compared on the seeds that they share.
    numbers.update(paired.rename(columns={"value": "recovery"})[["gain_low", "recovery"]])
    numbers = numbers.join(paired[["gain_high", "low", "high", "seeds"]])
    stated = (numbers["gain_low"] > 0) & (gain >= settings["recovery"]["minimum_gain"])
    for column in ("recovery", "low", "high"):
        numbers[column] = numbers[column].where(stated)
    numbers = numbers.reset_index()
    tasks = zip(numbers["task"], numbers["metric"], strict=True)
    level = settings["statistics"]["level"]
    return numbers.assign(n=[counts[pair] for pair in tasks], level=level)


def _share_text(value: float, low: float = math.nan, high: float = math.nan) -> str:
    import pandas

    if pandas.isna(value):
        return "–"
    return f"{value:.0%}" + ("" if pandas.isna(low) else f" [{low:.0%}, {high:.0%}]")


def _per_cent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def _version_label(models: pandas.Series) -> Callable[[pandas.Series], str]:
    single = models.nunique() == 1
    return lambda row: row["applied_to"] if single else f"{row['model']}\n{row['applied_to']}"
