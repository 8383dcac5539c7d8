"""The report: tables and figures in the section of their kind, and nothing from outside."""

import re
from pathlib import Path

import elsewhere
import matplotlib.figure
import pandas
import pytest
from conftest import PROJECT
from exhibit_making import KINDS

from portllm.comparison import score_table
from portllm.errors import InputError
from portllm.reporting import html_report, table_formats
from portllm.study import config, summary
from portllm.study.exhibits import Registry

SECTIONS = PROJECT / "report" / "sections.yaml"
TEMPLATE = PROJECT / "report" / "report.html.j2"


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A report of two tables, one of a kind without a section, and a figure."""
    numbers = pandas.DataFrame({"recovery": [0.5, 1.0, None], "task": ["a", "b & <c>", "d"]})
    text = numbers.astype(str).assign(task=["a", "b & <c>", "‖θ‖"])
    for name in ("shares", "odd"):
        numbers.to_csv(tmp_path / f"{name}.csv", index=False)
        (tmp_path / f"{name}.tex").write_text("\\begin{tabular}")
        note = "\nFile x is cut off.\n" if name == "odd" else ""
        (tmp_path / f"{name}.md").write_text(table_formats.to_markdown(text) + note)
    drawing = matplotlib.figure.Figure()
    for kind in ("svg", "png"):
        drawing.savefig(tmp_path / f"bars.{kind}")
    (tmp_path / "bars.csv").write_text("a,b\n")
    odd = type("Odd", (type(KINDS["tables", "seeds"]),), {"kind": "odd", "section": "none"})()
    return html_report.write(
        TEMPLATE,
        html_report.read_sections(SECTIONS),
        Registry([*KINDS.values(), odd]),
        settings={
            "study": {"title": "Our study", "parts": {"Tasks": ["one", "two"]}},
            "tables": {
                "odd": {"kind": "odd", "caption": "Odd <numbers>."},
                "shares": {"kind": "recovery", "caption": "Shares of the gain."},
            },
            "figures": {"bars": {"kind": "recovery", "caption": "Bars of shares."}},
        },
        files={
            "tables": {name: tmp_path / f"{name}.md" for name in ("odd", "shares")},
            "figures": {"bars": tmp_path / "bars.svg"},
        },
    )


def test_it_opens_offline(page: str) -> None:
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert "<script" not in page


def test_tables_stand_where_their_kind_belongs(page: str) -> None:
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == ["What was run", "How much of the gain is kept?", html_report.REST]
    assert (
        page.index("table-shares")
        < page.index(f">{html_report.REST}</h2>")
        < page.index("table-odd")
    )
    assert "Table 1 (shares)" in page
    assert "Table 2 (odd)" in page
    assert "Odd &lt;numbers&gt;." in page
    assert "Shares of the gain." in page
    assert page.count("Bars of shares.") == 2


def test_text_is_text(page: str) -> None:
    assert "b &amp; &lt;c&gt;" in page
    assert "‖θ‖" in page
    assert "one; two" in page
    assert '<p class="note">File x is cut off.</p>' in page


def test_every_exhibit_carries_its_numbers(page: str) -> None:
    downloads = re.findall(r'download="([^"]*)"', page)
    assert sorted(downloads) == [
        *("bars.csv", "bars.png", "bars.svg"),
        *("odd.csv", "odd.tex", "shares.csv", "shares.tex"),
    ]


def test_it_begins_with_what_was_found(page: str) -> None:
    assert "recover 75 % of what re-fine-tuning gains, a mean over 2 comparisons" in page
    assert "(50 % to 100 %; 1 others gain too little to divide by)" in page


def test_every_kind_has_a_section_and_a_caption() -> None:
    sections = [section["id"] for section in html_report.read_sections(SECTIONS)]
    assert len(KINDS) >= 17
    for kind in KINDS.values():
        assert kind.section in sections
        assert len(kind.caption) > 30


@pytest.mark.parametrize("group", ["tables", "figures"])
def test_kinds_of_a_section_have_an_order(group: str) -> None:
    names = list(KINDS.of_group(group))
    arranged = html_report.arrange(
        html_report.read_sections(SECTIONS), {name: KINDS[group, name] for name in reversed(names)}
    )
    expected = {
        "tables": [
            ["versions"],
            ["main"],
            ["recovery", "comparisons", "seeds"],
            ["temporal", "trend"],
            ["norms", "geometry"],
            ["efficiency", "costs"],
            ["provenance"],
            [],
        ],
        "figures": [
            *([], [], ["recovery"], ["lifetime"]),
            *(["scaling", "geometry", "loss_slices"], [], ["losses"], []),
        ],
    }
    assert arranged == expected[group]


def test_sections_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "sections.yaml").write_text("title: [")
    with pytest.raises(InputError, match=r"sections.yaml: expected a list of sections"):
        html_report.read_sections(tmp_path / "sections.yaml")


def test_trends_are_counted_in_a_sentence() -> None:
    numbers = pandas.DataFrame(
        {
            "arm": ["un-patched", "carried", "carried", "step-wise"],
            "slope": [-1.0, -1.0, -0.2, 0.5],
            "p_holm": [0.01, 0.01, 0.4, 0.01],
            "last_update": [5, 5, 5, 5],
            "un_patched_slope": [None, -1.0, -1.0, -1.0],
            "level": 0.95,
        }
    )
    (sentence,) = html_report.headlines(KINDS, [("trend", numbers)])
    assert "p < 0.05): carried in 1 of 2, step-wise in 0 of 1 series" in sentence
    (stricter,) = html_report.headlines(KINDS, [("trend", numbers.assign(level=0.995))])
    assert "p < 0.005): carried in 0 of 2" in stricter


def imported_scores(path: Path) -> Path:
    rows = [
        ["m", task, version, trained_on, "direct", seed, "acc,none", 0.5, 0.02, 400]
        for task in ("boolq", "gsm8k")
        for version in ("base", "first")
        for trained_on, seed in (("none", "none"), ("base", "42"), ("base", "50"))
    ]
    pandas.DataFrame(rows, columns=score_table.COLUMNS).to_csv(path, index=False)
    return path


def test_a_study_of_imported_scores_says_what_they_are_of(tmp_path: Path) -> None:
    directory = elsewhere.save_all(tmp_path / "elsewhere")
    study = {"imported": {"theirs": {**elsewhere.STUDY, "directory": str(directory)}}}
    config.load(study, schema=PROJECT / "config" / "schema.yaml", exhibits=KINDS)
    own = summary.described(study)
    found = html_report.with_imported(own, [imported_scores(tmp_path / "theirs.csv")])
    assert {part: what for part, what in found.items() if part != "Arms"} == {
        "Models": ["m (of theirs)"],
        "Versions": ["base, first (of theirs)"],
        "Imported scores": ["theirs (a paper)"],
        "Tasks": ["boolq, gsm8k (of theirs)"],
        # Not the study's own seed, with which nothing was trained.
        "Seeds": ["42, 50 (of theirs)"],
    }


def test_imported_scores_stand_beside_the_studys_own(tmp_path: Path) -> None:
    own = {"Models": ["demo base (hub/demo)"], "Tasks": ["rte"], "Seeds": ["1234"], "Updates": []}
    found = html_report.with_imported(own, [imported_scores(tmp_path / "theirs.csv")])
    assert found["Models"] == ["demo base (hub/demo)", "m (of theirs)"]
    assert found["Seeds"] == ["1234", "42, 50 (of theirs)"]
    assert "Updates" not in found
