"""Table of arms compared on the same items: differences, equivalence and flipped items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.study import matrix, selection
from portllm.study.exhibits import ScoreExhibit, Settings, register
from portllm.study.matrix import Config, Job

if TYPE_CHECKING:
    from portllm.reporting.formatting import Table


TIES_NOTE = (
    "Ties: items on which an arm gives several choices the same highest log-likelihood, and the "
    "difference in points with all of them decided against the arm and for it. lm-eval takes the "
    "first choice. Score in float32 (`scoring.dtype`) to have fewer."
)


@register
class ComparisonsTable(ScoreExhibit):
    """Ported against re-fine-tuned and against no patch."""

    group = "tables"
    kind = "comparisons"
    summary = "ported arms (by default `recovery.ported`) against re-fine-tuning and no patch"
    section = "recovery"
    caption = """
        Each row compares two arms on the same n items. The difference is the score of the arm less
        that of the other arm, in points, with its {level} interval: Tango's score interval for
        correct and wrong items; with several seeds, a t interval with the noise of items and seeds;
        else the paired bootstrap. p is from McNemar's exact test, or from the method of the
        interval, and is corrected by Holm's method over all rows that compare the same two arms.
        The column "within" tests equivalence by two one-sided tests against the stated margin, with
        the same correction: "yes" if the arms differ by less, "no" if by more, "not shown" if the
        items cannot tell. Newly wrong items (negative flips) are correct in the other arm and wrong
        in this one, newly right items the reverse, as shares of all n."""
    order = 20
    is_default = True
    statistics = ("margin", "level", "resamples", "seed")

    def arms(self, config: Config, settings: Settings) -> list[str]:
        """Return all arms: the other arm of a comparison need not be shown."""
        return matrix.chosen(config, "arms")

    def _ported(self, config: Config, settings: Settings) -> list[str]:
        return settings.get("arms", [config["recovery"]["ported"]])

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the results of the jobs whose items are compared."""
        return self.item_results(config, settings)

    def item_jobs(self, config: Config, settings: Settings) -> list[Job]:
        """Return the jobs that scored a ported arm and one that it is compared with."""
        roles = config["recovery"]
        others = {roles["zero_shot"], roles["re_fine_tuned"]}
        ported = set(self._ported(config, settings))
        return selection.jobs_with_arms(
            config, settings, lambda arms: bool(ported & arms.keys() and others & arms.keys())
        )

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether any job scored two arms to compare."""
        return bool(self.item_jobs(config, settings))

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return which arms are compared, too."""
        roles = {key: arm for key, arm in config["recovery"].items() if key != "minimum_gain"}
        ported = self._ported(config, settings)
        of_scores = super().study_settings(config, settings)
        return {**of_scores, "recovery": roles, "ported": ported}

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are results of scoring jobs."""
        import pandas

        from portllm.comparison import arm_comparisons
        from portllm.reporting.formatting import (
            Table,
            p_text,
            points_texts,
            range_texts,
            task_names,
            without_one,
        )

        numbers = arm_comparisons.compare(sources, settings)
        level, margin = (settings["statistics"][name] for name in ("level", "margin"))
        differences = range_texts(numbers, "value", "low", "high", signed=True)
        text = pandas.DataFrame(
            {
                "model": numbers["model"],
                "version": numbers["applied_to"],
                "task": task_names(numbers),
                "arm": numbers["arm"],
                "against": numbers["against"],
                "n": numbers["n"],
                "seeds": numbers["seeds"],
                f"difference, points [{level:.0%}]": differences,
                "p": [p_text(value) for value in numbers["p_value"]],
                "p, corrected": [p_text(value) for value in numbers["p_value_holm"]],
                f"within ±{margin:g} points": numbers["comparable"].fillna("–"),
                "newly wrong, % of n": range_texts(
                    numbers, "negative", "negative_low", "negative_high"
                ),
                "newly right, % of n": range_texts(
                    numbers, "positive", "positive_low", "positive_high"
                ),
            }
        )
        if "ties" not in numbers:
            return Table(numbers, without_one(text))
        text["ties"] = [
            "–" if pandas.isna(count) else f"{count:.0f}: {low} to {high}"
            for count, low, high in zip(
                numbers["ties"],
                points_texts(numbers, "ties_low"),
                points_texts(numbers, "ties_high"),
                strict=True,
            )
        ]
        return Table(numbers, without_one(text), (TIES_NOTE,))
