"""Tables and figures from scores that are known."""

from pathlib import Path

import pandas
import pytest
from exhibit_making import make_figure, make_table
from labels import assert_labels_stand_apart
from scipy import stats

from portllm.comparison import score_table
from portllm.errors import InputError
from portllm.reporting import table_formats
from portllm.reporting.exhibits.recovery import recovery_numbers
from portllm.storage import files

ARMS = {
    "zero-shot": {"trained_on": "none", "applied_to": "all", "method": "direct"},
    "fine-tuned": {"trained_on": "base", "applied_to": "base", "method": "direct"},
    "ported": {"trained_on": "base", "applied_to": "later", "method": "direct"},
    "re-fine-tuned": {"trained_on": "same", "applied_to": "later", "method": "direct"},
}
RECOVERY = {
    "minimum_gain": 0.2,
    "zero_shot": "zero-shot",
    "ported": "ported",
    "re_fine_tuned": "re-fine-tuned",
}
STATISTICS = {"level": 0.95, "resamples": 1000, "seed": 1}
SETTINGS = {"arms": ARMS, "recovery": RECOVERY, "statistics": STATISTICS}

# version, trained_on, seed, value of "easy", value of "hard"
VALUES = [
    ("base", "none", "none", 0.5, 0.0),
    ("base", "base", "1", 0.9, 0.6),
    ("v2", "none", "none", 0.5, 0.1),
    ("v2", "base", "1", 0.8, 0.5),
    ("v2", "base", "2", 0.9, 0.7),
    ("v2", "v2", "1", 0.9, 0.2),
    ("v2", "v2", "2", 0.9, 0.2),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = []
    for applied_to, trained_on, seed, easy, hard in VALUES:
        method = "none" if trained_on == "none" else "direct"
        for task, metric, value in (
            ("easy", "acc,none", easy),
            ("hard", "exact_match,strict-match", hard),
            ("hard", "exact_match,flexible-extract", hard),
        ):
            cell = ["m", task, applied_to, trained_on, method, seed, metric, value, 0.02, 400]
            rows.append(cell)
    path = tmp_path / "scores.csv"
    pandas.DataFrame(rows, columns=score_table.COLUMNS).to_csv(path, index=False)
    return path


def test_main_table(source: Path) -> None:
    text = make_table("main", [source], {**SETTINGS, "kind": "main"}).text
    assert list(text.columns) == [
        "version",
        "arm",
        "easy, n = 400",
        "hard (strict-match), n = 400",
        "hard (flexible-extract), n = 400",
    ]
    assert text[["version", "arm", "easy, n = 400"]].to_numpy().tolist() == [
        ["base", "zero-shot", "50.0 ± 2.0"],
        ["base", "fine-tuned", "90.0 ± 2.0"],
        ["v2", "zero-shot", "50.0 ± 2.0"],
        ["v2", "ported", "85.0 ± 2.0"],
        ["v2", "re-fine-tuned", "90.0 ± 2.0"],
    ]


def test_the_main_tables_numbers_have_intervals(source: Path) -> None:
    numbers = make_table("main", [source], {**SETTINGS, "kind": "main"}).numbers
    first = numbers.iloc[0]
    theirs = stats.binomtest(200, 400).proportion_ci(method="wilson")
    assert (first["low"], first["high"]) == pytest.approx((theirs.low, theirs.high))
    assert (first["interval"], first["level"]) == ("Wilson", 0.95)


def test_without_items_f1_has_the_normal_interval_of_lm_evals_error(source: Path) -> None:
    table = pandas.read_csv(source)
    table["metric"] = table["metric"].replace("acc,none", "f1,none")
    table.to_csv(source, index=False)
    numbers = make_table("main", [source], {**SETTINGS, "kind": "main"}).numbers
    row = numbers[numbers["metric"] == "f1,none"].iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((0.4608, 0.5392), abs=1e-4)
    assert row["interval"] == "normal"


def test_scores_of_other_numbers_of_items_are_in_no_common_table(source: Path) -> None:
    table = pandas.read_csv(source)
    table.loc[0, "n"] = 399
    table.to_csv(source, index=False)
    message = "m/v2/easy, zero-shot: found 400 items, expected the 399 of m/base/easy, zero-shot"
    for kind in ("main", "recovery"):
        with pytest.raises(InputError, match=message):
            make_table(kind, [source], SETTINGS)


def test_selection_of_tasks_and_versions(source: Path) -> None:
    chosen = {**SETTINGS, "kind": "main", "tasks": ["easy"], "versions": ["v2"]}
    text = make_table("main", [source], chosen).text
    assert list(text.columns) == ["version", "arm", "easy, n = 400"]
    assert set(text["version"]) == {"v2"}


def test_recovery_is_stated_only_where_there_is_a_gain(source: Path) -> None:
    numbers = recovery_numbers([source], SETTINGS).set_index(["task", "metric"])
    # (0.85 − 0.5) / (0.9 − 0.5) with the ported seeds' mean; the hard task gains 0.1 only.
    assert numbers.loc[("easy", "acc,none"), "recovery"] == pytest.approx(0.875)
    assert numbers.loc["hard", "recovery"].isna().all()
    text = make_table("recovery", [source], SETTINGS).text
    assert text["recovery"].tolist() == ["88%", "–", "–", "88%"]
    assert text["model"].iloc[-1] == "mean of 1 of 3"


def test_a_cell_of_no_arm_is_left_out_and_one_of_two_arms_is_in_both(source: Path) -> None:
    table = score_table.read(source)
    arms = {"every port": ARMS["ported"], "base's": {**ARMS["ported"], "applied_to": ["v2"]}}
    found = score_table.of_arms(table, arms)
    assert len(found) == 2 * 2 * 3
    assert set(found["trained_on"]) == {"base"}


def test_latex_and_markdown(source: Path) -> None:
    text = make_table("main", [source], {**SETTINGS, "kind": "main"}).text
    latex = table_formats.to_latex(text)
    assert r"\toprule" in latex
    assert r"85.0 $\pm$ 2.0" in latex
    assert "±" not in latex
    assert "| v2        | ported" in table_formats.to_markdown(text)


def test_versions_table(tmp_path: Path) -> None:
    measured = {
        "model": "m",
        "version": "v2",
        "parameters": 1_234_567,
        "base_norm": 10.0,
        "difference_norm": 1.5,
        "relative": 0.15,
    }
    files.write_json(tmp_path / "movement.json", measured)
    text = make_table("versions", [tmp_path / "movement.json"], {}).text
    assert text.iloc[0].tolist() == ["m", "v2", "1,234,567", "10.00", "1.50", "15.0%"]


def test_the_figure_shows_every_version(source: Path) -> None:
    figure = make_figure("recovery", [source], {**SETTINGS, "width": 6, "height": 3}).figure
    axes = figure.axes[0]
    assert "v2" in [label.get_text() for label in axes.get_xticklabels()]
    assert "%" in axes.get_ylabel()
    heights = [round(bar.get_height()) for bar in axes.patches]
    assert heights == [88, 0, 0]
    assert [text.get_text() for text in axes.texts] == ["88", "n/a", "n/a"]
    legend = figure.legends[0]
    assert legend.get_texts()[0].get_text() == "easy, n = 400"
    assert legend.get_title().get_text() == "lines: 95 % intervals; dashed: re-fine-tuning"
    assert_labels_stand_apart(figure)


@pytest.mark.parametrize("count", [3, 5, 16])
def test_labels_of_many_versions_and_tasks_stand_apart(tmp_path: Path, count: int) -> None:
    metrics = [(task, "acc,none") for task in ("boolq", "sst2", "mrpc", "rte", "winogrande")]
    metrics += [("gsm8k", f"exact_match,{name}") for name in ("strict-match", "flexible-extract")]
    names = [f"tales-then-lessons-{number}" for number in range(count)]
    rows = []
    for place, version in enumerate(names):
        for trained_on, value in (("none", 0.5), ("base", 0.875 + place / 100), (version, 0.9)):
            cell = [version, trained_on, "none" if trained_on == "none" else "direct", "1"]
            rows += [["m", task, *cell, metric, value, 0.02, 400] for task, metric in metrics]
    path = tmp_path / "scores.csv"
    pandas.DataFrame(rows, columns=score_table.COLUMNS).to_csv(path, index=False)
    figure = make_figure("recovery", [path], {**SETTINGS, "width": 7, "height": 3}).figure
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(shown) == count * len(metrics)
    # Every row of bars has the line of re-fine-tuning, on which a number would stand.
    assert all(axes.lines[-1].get_ydata() == [100, 100] for axes in figure.axes)
    assert_labels_stand_apart(figure)


def test_collecting_results(tmp_path: Path) -> None:
    metrics = {"acc,none": {"value": 0.5, "stderr": None, "n": 7}}
    cell = {"trained_on": "none", "method": "none", "seed": None, "metrics": metrics}
    result = {
        "names": {"model": "m", "task": "t", "applied_to": "base"},
        "lm_eval": {"task": "t", "version": 1.0},
        "cells": [cell],
    }
    files.write_json(tmp_path / "t.json", result)
    table = score_table.collect([tmp_path / "t.json"])
    table.to_csv(tmp_path / "scores.csv", index=False)
    read = score_table.read(tmp_path / "scores.csv")
    assert list(read.columns) == score_table.COLUMNS
    assert read.iloc[0][["seed", "metric", "n"]].tolist() == ["none", "acc,none", 7]
    assert pandas.isna(read.iloc[0]["stderr"])


def _result(path: Path, version: float, items: int) -> Path:
    metrics = {"acc,none": {"value": 0.5, "stderr": None, "n": items}}
    cell = {"trained_on": "none", "method": "none", "seed": None, "metrics": metrics}
    names = {"model": "m", "task": "t", "applied_to": path.stem}
    lm_eval = {"task": "t", "version": version}
    files.write_json(path, {"names": names, "lm_eval": lm_eval, "cells": [cell]})
    return path


@pytest.mark.parametrize(
    ("version", "items", "message"),
    [
        (
            2.0,
            7,
            "of t cannot be compared: task version 1.0 in .*base.json, 2.0 in .*v2.json",
        ),
        (
            1.0,
            6,
            "of t cannot be compared: 7 items in .*base.json, 6 in .*v2.json",
        ),
    ],
)
def test_results_that_cannot_be_compared_are_not_collected(
    tmp_path: Path, version: float, items: int, message: str
) -> None:
    results = [_result(tmp_path / "base.json", 1.0, 7), _result(tmp_path / "v1.json", 1.0, 7)]
    assert len(score_table.collect(results)) == 2
    with pytest.raises(InputError, match=message):
        score_table.collect([*results, _result(tmp_path / "v2.json", version, items)])
    files.write_json(tmp_path / "other.json", {"results": {}})
    with pytest.raises(InputError, match=r"other.json: not the result of a scoring job"):
        score_table.collect([tmp_path / "other.json"])


def _manifest(directory: Path, stage: str, seconds: float, peaks: list[int]) -> Path:
    directory.mkdir(parents=True)
    cost = {
        "wall_seconds": seconds,
        "peak_host_bytes": 2_000_000_000,
        "device": "a GPU" if peaks else "cpu",
        "devices": len(peaks),
        "peak_device_bytes": peaks,
    }
    names = {"model": "m", "task": "t"}
    trained = 0 if stage == "transplant" else 20_971_520
    made = {"stage": stage, "names": names, "trainable_parameters": trained, "cost": cost}
    files.write_json(directory / "manifest.json", made)
    return directory


def test_efficiency_from_manifests(tmp_path: Path) -> None:
    gigabyte = 1_000_000_000
    sources = [
        _manifest(tmp_path / "a", "patch", 3600, [30 * gigabyte, 20 * gigabyte]),
        _manifest(tmp_path / "b", "patch", 7200, [30 * gigabyte, 20 * gigabyte]),
        _manifest(tmp_path / "c", "transplant", 36, []),
    ]
    text = make_table("efficiency", sources, {"kind": "efficiency"}).text
    assert text.to_numpy().tolist() == [
        ["m", "t", "re-fine-tuning", "a GPU", "20,971,520", "30.00", "50.00", "2.00", "3.0000", 2],
        ["m", "t", "porting", "cpu", "0", "–", "–", "2.00", "0.0100", 1],
    ]
    quick = _manifest(tmp_path / "d", "transplant", 0.1, [])
    assert make_table("efficiency", [quick], {"kind": "efficiency"}).text["hours"].tolist() == [
        "<0.0001"
    ]
    known = {"kind": "efficiency", "published": "resources/published/portllm_efficiency.csv"}
    rows = make_table("efficiency", sources, known).text
    published = rows[rows["device"].str.startswith("published")]
    assert published["GB, all devices"].tolist() == [350.61, 28.71]
    assert published["hours"].tolist() == [40.65, 0.0083]


def test_norms_are_averaged_over_seeds(tmp_path: Path) -> None:
    sources = []
    for seed, value in (("1", 1.0), ("2", 3.0)):
        names = {"model": "m", "version": "v2", "trained_on": "base", "task": "t", "seed": seed}
        kinds = ("naive_norm", "naive_largest", "residual_norm", "residual_largest")
        measured = dict.fromkeys((*kinds, "patch_norm", "native_norm", "relative_residual"), value)
        path = tmp_path / f"{seed}.json"
        files.write_json(path, {**names, **measured, "weights": 14})
        sources.append(path)
    table = make_table("norms", sources, {"kind": "norms"})
    assert table.numbers["seeds"].tolist() == [2]
    assert table.text.iloc[0].tolist() == ["m", "v2", "base", "t", *["2.00"] * 5]
    assert "$" in table_formats.to_latex(table.text)
    assert "‖" not in table_formats.to_latex(table.text)
