"""Table of the spread over seeds, and of how much of it is the noise of items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portllm.study import selection
from portllm.study.exhibits import ScoreExhibit, Settings, register
from portllm.study.matrix import Config, Job

if TYPE_CHECKING:
    import pandas

    from portllm.reporting.formatting import Table


@register
class SeedsTable(ScoreExhibit):
    """Mean and standard deviation over seeds; not made for a study with one seed."""

    group = "tables"
    kind = "seeds"
    summary = "mean and spread over seeds"
    section = "recovery"
    caption = """
        Mean and standard deviation over seeds, and the sources of the mean's noise, in points: item
        noise would shrink with more items, seed noise with more trainings, the residual with
        either. The {level} interval includes all three; components of variance with items and
        seeds crossed."""
    order = 30
    is_default = True
    statistics = ("level",)

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the results of the jobs whose items are compared."""
        return self.item_results(config, settings)

    def item_jobs(self, config: Config, settings: Settings) -> list[Job]:
        """Return the jobs that scored an arm with several seeds."""

        def has_seeds(arms: selection.ArmCells) -> bool:
            shown = settings.get("arms", arms.keys())
            return any(len(arms[arm]) > 1 for arm in shown if arm in arms)

        return selection.jobs_with_arms(config, settings, has_seeds)

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether any arm has several seeds."""
        return bool(self.item_jobs(config, settings))

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are results of scoring jobs."""
        import pandas

        from portllm.comparison import arm_comparisons
        from portllm.reporting.formatting import Table, range_texts, task_names, without_one

        numbers = arm_comparisons.seeds(sources, settings)
        level = settings["statistics"]["level"]
        spread = zip(_points(numbers, "mean"), _points(numbers, "sd"), strict=True)
        text = pandas.DataFrame(
            {
                "model": numbers["model"],
                "version": numbers["applied_to"],
                "task": task_names(numbers),
                "arm": numbers["arm"],
                "n": numbers["n"],
                "seeds": numbers["seeds"],
                "mean ± sd": [f"{mean} ± {sd}" for mean, sd in spread],
                "item noise": _points(numbers, "item_stderr"),
                "seed noise": _points(numbers, "seed_stderr"),
                "residual": _points(numbers, "residual_stderr"),
                f"mean [{level:.0%}]": range_texts(numbers, "mean", "low", "high"),
            }
        )
        return Table(numbers, without_one(text))


def _points(numbers: pandas.DataFrame, name: str) -> list[str]:
    import pandas

    from portllm.scoring import metrics

    pairs = zip(numbers[name], numbers["metric"], strict=True)
    return [
        "–" if pandas.isna(value) else f"{value * metrics.factor(metric):.1f}"
        for value, metric in pairs
    ]
