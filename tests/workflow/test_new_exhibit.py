"""A new kind of table or figure is one new file: scheduled, made, captioned and reported."""

import re
from typing import Any

import elsewhere
import pandas
import pytest
from conftest import Checkout

STUDY = "study.yaml"
CAPTION = "The best arm of each task, among those of 50 % or more; intervals are of 90 %."
NEW_FILE = '''"""Table and figure of the best arm of each task."""

from portllm.study.exhibits import ScoreExhibit, register


class Best(ScoreExhibit):
    kind = "best_arms"
    summary = "the best arm of each task"
    section = "scores"
    caption = """
        The best arm of each task, among those of 50 % or more;
        intervals are of {level}."""
    keys = {"least": {"description": "Least score shown.", "type": "number", "default": 0.0}}

    def numbers(self, sources, settings):
        from portllm.comparison import score_table

        scores = score_table.of_chosen_arms(sources[0], settings)
        scores = scores[scores["value"] >= settings["least"]]
        return scores.loc[scores.groupby("task", sort=False)["value"].idxmax()]


@register
class BestTable(Best):
    group = "tables"

    def make(self, sources, settings):
        from portllm.reporting.formatting import Table

        numbers = self.numbers(sources, settings)
        return Table(numbers, numbers[["task", "arm", "value"]])

    def headline(self, numbers):
        return f"{numbers['arm'].iloc[0]} is best."


@register
class BestFigure(Best):
    group = "figures"

    def make(self, sources, settings):
        from portllm.reporting.figure_style import Drawing, panels

        numbers = self.numbers(sources, settings)
        figure, (axes,) = panels(settings, 1)
        axes.bar(numbers["task"], numbers["value"])
        return Drawing(figure, numbers)
'''


@pytest.fixture
def study(checkout: Checkout) -> Checkout:
    """A study of results that exist, with a table and a figure of a new kind."""
    package = checkout.directory / "workflow_scripts" / "portllm" / "reporting" / "exhibits"
    (package / "best_arms.py").write_text(NEW_FILE)
    elsewhere.save_all(checkout.directory / "elsewhere")
    one: dict[str, Any] = {"kind": "best_arms"}
    content = {
        "imported": {"theirs": elsewhere.STUDY},
        "statistics": {"level": 0.9},
        "arms": {
            "un-patched": {"trained_on": "none", "applied_to": "all"},
            "carried": {"trained_on": "base", "applied_to": "all"},
        },
        "tables": {"best": {**one, "least": 0.5}, "temporal": {"kind": "temporal"}},
        "figures": {"best": one},
    }
    checkout.write(STUDY, content)
    return checkout


def test_one_file_adds_a_table_and_a_figure(study: Checkout) -> None:
    jobs = study.planned("--configfile", STUDY)
    assert ("make_table", {"table": "best"}) in jobs
    assert ("make_figure", {"figure": "best"}) in jobs

    study.complete("--configfile", STUDY)
    results = study.directory / "results"
    table = pandas.read_csv(results / "tables" / "best.csv")
    assert table[["task", "arm", "value"]].to_numpy().tolist() == [
        ["boolq", "carried", 0.9],
        ["gsm8k", "carried", 0.9],
    ]
    assert "28 are used" in (results / "tables" / "best.tex").read_text()
    assert (results / "figures" / "best.svg").stat().st_size > 1000

    page = (results / "report.html").read_text()
    assert "carried is best." in page
    sections = re.split(r"<h2[^>]*>(.*?)</h2>", page)
    (section,) = [
        text for title, text in zip(sections[1::2], sections[2::2], strict=True) if "best" in text
    ]
    assert sections[sections.index(section) - 1] == "Does the old patch work on the new model?"
    # The table's caption, and the figure's with its alternative text.
    assert section.count(CAPTION) == 3

    study.complete("--configfile", STUDY, "--report", "snakemake.html")
    assert CAPTION in (study.directory / "snakemake.html").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"kind": "best_arm"},
            "tables.best.kind: found 'best_arm', which is not a valid choice; nearest: best_arms",
        ),
        ({"leest": 1}, "tables.best.leest: unknown key; nearest: least"),
        ({"least": "half"}, "tables.best.least: found 'half', expected number"),
        ({"kind": "seeds"}, "tables.best.least: unknown key for kind 'seeds'; only for best_arms"),
    ],
)
def test_its_keys_are_checked(study: Checkout, change: dict[str, Any], expected: str) -> None:
    config = study.read(STUDY)
    config["tables"]["best"] |= change
    study.write(STUDY, config)
    done = study.run("--dry-run", "--configfile", STUDY)
    assert done.returncode != 0
    assert f"{STUDY}: {expected}\n" in done.stdout
