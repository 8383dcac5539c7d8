"""Table of all scores: an arm of a version in each row, a task in each column."""

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
class MainTable(ScoreExhibit):
    """The paper's main table."""

    group = "tables"
    kind = "main"
    summary = "scores of the arms on each version"
    section = "scores"
    caption = """
        Scores of lm-eval, in per cent for metrics that are shares, each with its standard error
        over the task's n items; n is in the column's head. The CSV also has {level} intervals:
        Wilson's for shares of correct items, the bootstrap's for other metrics, and the normal one
        where the items are not available. Scores of several seeds are averaged; they share their
        items, so more seeds do not make the standard error smaller."""
    order = 10
    is_default = True
    shows_published = True
    statistics = ("level", "resamples", "seed")

    def item_jobs(self, config: Config, settings: Settings) -> list[Job]:
        """Return the jobs of the arms shown, for the intervals of scores such as F1."""
        return selection.jobs_with_arms(
            config, settings, lambda arms: bool(set(settings.get("arms", arms)) & arms.keys())
        )

    def make(self, sources: list[Path], settings: Settings) -> Table:
        """Return the table; `sources` are the scores, then results of scoring jobs."""
        from portllm.comparison import arm_comparisons, score_table
        from portllm.reporting.formatting import Table, with_intervals

        scores = score_table.of_chosen_arms(sources[0], settings)
        numbers = with_intervals(scores, settings["statistics"]["level"])
        numbers = _with_items(numbers, arm_comparisons.intervals(sources[1:], settings))
        if settings.get("published"):
            from portllm.comparison import published

            numbers = published.with_published(numbers, published.read(Path(settings["published"])))
        versions = list(dict.fromkeys(score_table.read(sources[0])["applied_to"]))
        text = _wide(numbers, versions, list(settings["arms"]))
        return Table(numbers, text.drop(columns="model") if len(set(text["model"])) == 1 else text)


def _with_items(numbers: pandas.DataFrame, from_items: pandas.DataFrame) -> pandas.DataFrame:
    """Replace the intervals of scores by those from their items, where these are available."""
    from portllm.comparison import arm_comparisons

    keys = [*arm_comparisons.PLACE, "arm"]
    from_items = from_items.set_index(keys)
    placed = numbers.set_index(keys)
    available = from_items.index.intersection(placed.index)
    # DataFrame.update would keep the other interval where the items give none.
    placed.loc[available, from_items.columns] = from_items.loc[available]
    return placed.reset_index()[list(numbers.columns)]


def _texts(numbers: pandas.DataFrame) -> list[str]:
    """Scores as text, each with the published value, if there is one."""
    import pandas

    from portllm.reporting.formatting import published_text, value_text

    columns = (numbers[name] for name in ("value", "stderr", "metric"))
    texts = [value_text(*row) for row in zip(*columns, strict=True)]
    if "published" not in numbers:
        return texts
    names = ("published", "difference", "published_possible", "metric")
    rows = zip(*(numbers[name] for name in names), strict=True)
    added = ["" if pandas.isna(row[0]) else published_text(*row) for row in rows]
    return [text + more for text, more in zip(texts, added, strict=True)]


def _wide(numbers: pandas.DataFrame, versions: list[str], arms: list[str]) -> pandas.DataFrame:
    """One row for each model, version and arm; one column for each task and metric."""
    from portllm.comparison import score_table
    from portllm.reporting.formatting import column_names

    counts = score_table.item_counts(numbers)
    names = {pair: f"{name}, n = {counts[pair]}" for pair, name in column_names(numbers).items()}
    shown = numbers.assign(
        column=[names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)],
        text=_texts(numbers),
    )
    wide = shown.pivot(index=["model", "applied_to", "arm"], columns="column", values="text")
    models = list(dict.fromkeys(numbers["model"]))
    order = sorted(
        wide.index,
        key=lambda row: (models.index(row[0]), versions.index(row[1]), arms.index(row[2])),
    )
    wide = wide.loc[order, list(dict.fromkeys(names.values()))].fillna("–")
    return wide.reset_index().rename(columns={"applied_to": "version"})
