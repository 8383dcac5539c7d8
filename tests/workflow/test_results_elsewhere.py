"""Studies of imported scores, alone or together with own scores."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import elsewhere
import pandas
import pytest
from conftest import PROJECT, Checkout

STUDY = "study.yaml"
PUBLISHED = "config/published_temporal.yaml"
ARMS = {
    "un-patched": {"trained_on": "none", "applied_to": "all"},
    "carried": {"trained_on": "base", "applied_to": "all"},
    "step-wise": {"trained_on": "same", "applied_to": "all"},
}
SHOWN = {
    "arms": ARMS,
    "tables": {"temporal": {"kind": "temporal"}, "trend": {"kind": "trend"}},
    "figures": {"lifetime": {"kind": "lifetime"}},
}
ALL_JOBS = {
    "import_scores": 1,
    "collect_scores": 1,
    "make_table": 2,
    "make_figure": 1,
    "make_report": 1,
}


@pytest.fixture
def study(checkout: Checkout) -> Checkout:
    elsewhere.save_all(checkout.directory / "elsewhere")
    checkout.write(STUDY, {"imported": {"theirs": elsewhere.STUDY}, **SHOWN})
    return checkout


def test_a_study_of_imported_scores_only(study: Checkout) -> None:
    study.complete("--configfile", STUDY)
    results = study.directory / "results"
    lines = (results / "tables" / "temporal.md").read_text().splitlines()
    (carried,) = [line for line in lines if line.startswith("| boolq ") and "carried" in line]
    cells = [cell.strip() for cell in carried.strip("|").split("|")]
    assert cells[2:] == [
        "200",
        "90.0 ± 2.1",
        "87.0 ± 2.4",
        "84.0 ± 2.6",
        "81.0 ± 2.8",
        "78.0 ± 2.9",
    ]
    assert "Of 28 result files of theirs (a paper), 28 are used" in "\n".join(lines)
    trend = pandas.read_csv(results / "tables" / "trend.csv").set_index(["task", "arm"])
    assert trend.loc[("boolq", "carried"), "slope"] == pytest.approx(-0.03)
    for kind in ("svg", "png"):
        assert (results / "figures" / f"lifetime.{kind}").stat().st_size > 1000
    assert not (results / "models").exists()
    page = (results / "report.html").read_text()
    for part, what in (("Models", "m"), ("Tasks", "boolq, gsm8k"), ("Seeds", "42")):
        assert f"<dt>{part}</dt><dd>{what} (of theirs)</dd>" in page

    # A newer file and a truncated one: everything downstream of the scores is rebuilt once.
    whole = elsewhere.result("boolq", 0.6, update=4)
    elsewhere.save(
        study.directory / "elsewhere/bare/v4/later.json", {**whole, "date": 1_790_000_000}
    )
    cut = study.directory / "elsewhere/bare/v1/boolq/results_2026-06-02T10-00-00.5.json"
    cut.write_text(cut.read_text()[:200])
    assert study.counts("--configfile", STUDY) == ALL_JOBS
    study.complete("--configfile", STUDY)
    text = (results / "tables" / "temporal.md").read_text()
    assert "Left out: bare/v1/boolq/results_2026-06-02T10-00-00.5.json (invalid JSON" in text
    assert "(older than bare/v4/later.json)" in text
    (bare,) = [line for line in text.splitlines() if "un-patched" in line and "| boolq" in line]
    assert [cell.strip() for cell in bare.strip("|").split("|")][4] == "–"
    assert "allowbreak" in (results / "tables" / "temporal.tex").read_text()


def test_imported_scores_together_with_own_scores(study: Checkout) -> None:
    top = study.read(STUDY)
    reference = copy.deepcopy(top["imported"]["theirs"])
    reference |= {
        "models": ["theirs"],
        "versions": {"base": 0, "tales": 1, "tales-then-lessons": 2},
    }
    chain = {"versions": ["base", "tales", "tales-then-lessons"]}
    table = {"kind": "temporal", **chain}
    study.write(STUDY, {"imported": {"theirs": reference}, "tables": {"temporal": table}})
    alone = study.counts("--configfile", "config.yaml")
    both = study.counts("--configfile", "config.yaml", STUDY)
    assert both["import_scores"] == 1
    assert both["score"] == alone["score"]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such directory": (
        {"directory": "nowhere"},
        ["imported.theirs.directory", "no such directory: nowhere", "get it from a paper"],
    ),
    "pattern": (
        {"cells": [{"match": {"path": "("}, "applied_to": "base", "trained_on": "none"}]},
        ["imported.theirs.cells.0.match.path", "is not a regular expression"],
    ),
    "unknown key": (
        {"cells": [{"match": {"pth": "v"}}]},
        ["imported.theirs.cells.0.match.pth", "unknown key; nearest: path"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings_are_reported_in_one_line(study: Checkout, case: str) -> None:
    changes, expected = REFUSED[case]
    config = study.read(STUDY)
    config["imported"]["theirs"] |= changes
    study.write(STUDY, config)
    assert_refused(study, expected)


def assert_refused(study: Checkout, expected: list[str], *files: str) -> None:
    done = study.run("--dry-run", "--configfile", *(files or [STUDY]))
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stdout
    for part in expected:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("section", "settings", "expected"),
    [
        (
            "tables",
            {"kind": "trend", "tasks": ["boolqq"]},
            ["tables.it.tasks", "no task named 'boolqq'", "nearest: boolq"],
        ),
        (
            "figures",
            {"kind": "lifetime", "versions": ["frist"]},
            ["figures.it.versions", "no version named 'frist'", "nearest: first"],
        ),
    ],
)
def test_unknown_names_in_tables_of_imported_scores_are_errors(
    study: Checkout, section: str, settings: dict[str, Any], expected: list[str]
) -> None:
    config = study.read(STUDY)
    config[section] = {"it": settings}
    study.write(STUDY, config)
    assert_refused(study, expected)


def test_a_study_without_models_is_an_error(study: Checkout) -> None:
    study.write(STUDY, SHOWN)
    assert_refused(study, ["study.yaml: defines no models or tasks, only changes to a study"])


def test_two_versions_of_the_same_update_are_an_error(study: Checkout) -> None:
    study.write(STUDY, {"figures": {"everything": {"kind": "lifetime"}}})
    expected = ["figures.everything", "tales and lessons are both update 1 of demo", "`versions`"]
    assert_refused(study, expected, "config.yaml", STUDY)


def test_a_version_with_two_update_numbers_is_an_error(study: Checkout) -> None:
    config = study.read(STUDY)
    reference = config["imported"]["theirs"]
    reference |= {"models": ["demo"], "versions": {"base": 0, "lessons": 3}}
    study.write(STUDY, {"imported": {"theirs": reference}})
    expected = ["imported.theirs.versions.lessons", "update 3", "update 1 of demo"]
    assert_refused(study, expected, "config.yaml", STUDY)


def test_without_its_files_the_published_study_names_their_source(checkout: Checkout) -> None:
    assert_refused(checkout, ["no such directory", "arXiv 2607.20301"], PUBLISHED)


PLACES = [
    os.environ.get("PORTLLM_PUBLISHED"),
    PROJECT.parent / "shared/published/temporal-portllm/rep_1_fw",
]
REAL = next((Path(place).resolve() for place in PLACES if place and Path(place).is_dir()), None)


@pytest.mark.skipif(
    REAL is None,
    reason="PORTLLM_PUBLISHED names no directory: rep_1_fw of the follow-up study's repository",
)
def test_the_published_files_give_the_published_table(checkout: Checkout) -> None:
    checkout.write("where.yaml", {"imported": {"follow-up": {"directory": str(REAL)}}})
    checkout.complete("--configfile", PUBLISHED, "where.yaml")
    results = checkout.directory / "results" / "published_temporal"
    files = pandas.read_csv(results / "imported" / "follow-up.files.csv")
    assert files["status"].value_counts().to_dict() == {"used": 119, "left out": 1}
    # Two figures of each row, taken from the files by hand.
    table = pandas.read_csv(results / "tables" / "temporal.csv")
    assert len(table) == 5 * 3 * 6
    scores = table.set_index(["task", "arm", "update"])["value"]
    assert scores["winogrande", "un-patched", 0] == pytest.approx(0.7505919494869772)
    assert scores["boolq", "carried", 4] == pytest.approx(0.9036697247706422)
    assert scores["gsm8k", "step-wise", 8] == pytest.approx(0.7073540561031084)
    errors = table.set_index(["task", "arm", "update"])["stderr"]
    assert errors["winogrande", "un-patched", 0] == pytest.approx(0.01216018919693069)
    assert errors["boolq", "carried", 4] == pytest.approx(0.005160345817079486)
    assert errors["gsm8k", "step-wise", 8] == pytest.approx(0.012532334368242894)
    # And of all that were read, what the files say.
    read = pandas.read_csv(results / "imported" / "follow-up.csv")
    assert len(read) > 119
    for row in read.itertuples():
        raw = json.loads((REAL / row.file).read_text())["results"][row.task]
        error = raw[row.metric.replace(",", "_stderr,")]
        assert (row.value, row.stderr) == pytest.approx((raw[row.metric], error), rel=1e-12)
    # The patch of the base on the base is the first of both arms.
    assert scores["arc_easy", "carried", 0] == scores["arc_easy", "step-wise", 0]
    trend = pandas.read_csv(results / "tables" / "trend.csv").set_index(["task", "arm"])
    assert trend.loc[("boolq", "carried"), "p"] == pytest.approx(0.193, abs=5e-4)
    assert trend.loc[("gsm8k", "carried"), "slope"] == pytest.approx(-0.00160, abs=5e-6)
    assert "humaneval" in (results / "tables" / "trend.md").read_text()
