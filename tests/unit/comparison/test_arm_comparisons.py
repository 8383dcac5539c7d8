"""Tables that compare arms item by item, from result files whose items are known."""

import logging
import math
from pathlib import Path

import numpy
import pandas
import pytest
from exhibit_making import make_figure, make_table
from paired_results import (
    ARMS,
    COMPARED,
    EASE,
    GOLD,
    ONE_SEED,
    PORTED,
    RECOVERY,
    SETTINGS,
    STATISTICS,
    TUNED,
    TWO_SEEDS,
    ZERO_SHOT,
    collected,
    write,
)
from scipy import stats

from portllm import statistics
from portllm.comparison import arm_comparisons, item_scores
from portllm.errors import InputError
from portllm.reporting import table_formats
from portllm.reporting.exhibits.recovery import recovery_numbers


def test_a_comparison_is_that_of_the_items(tmp_path: Path) -> None:
    numbers = arm_comparisons.compare([write(tmp_path, ONE_SEED)], COMPARED)
    assert numbers[["metric", "arm", "against"]].to_numpy().tolist() == [
        ["acc,none", "ported", "re-fine-tuned"],
        ["acc,none", "ported", "zero-shot"],
        ["f1,none", "ported", "re-fine-tuned"],
        ["f1,none", "ported", "zero-shot"],
    ]
    row = numbers.iloc[0]
    result = statistics.difference(PORTED["1"], TUNED)
    for name in ("value", "low", "high", "p_value", "n", "seeds", "test"):
        assert row[name] == getattr(result, name)
    lost, won = (PORTED["1"] < TUNED).sum(), (PORTED["1"] > TUNED).sum()
    assert (row["negative"] * 200, row["positive"] * 200) == pytest.approx((lost, won))
    assert row["p_value"] == pytest.approx(stats.binomtest(int(won), int(won + lost)).pvalue)
    assert row["margin"] == 0.05
    # The same predictions: F1 flips as accuracy does.
    assert numbers.iloc[2]["negative"] == row["negative"]
    assert numbers.iloc[2]["test"] == "bootstrap"


def test_a_comparison_shows_whether_ties_decide_it(tmp_path: Path) -> None:
    ported, tuned = ("base", "direct", 1), ("v2", "direct", 1)
    right, wrong = (int(numpy.flatnonzero(PORTED["1"] == value)[0]) for value in (1, 0))
    tied = {ported: {right: [0.0, 1.0], wrong: [0.0, 1.0]}, tuned: {right: [0.0, 1.0]}}
    path = write(tmp_path, ONE_SEED, tied=tied)
    numbers = arm_comparisons.compare([path], COMPARED)
    row = numbers.iloc[0]
    assert row["ties"] == 2
    tuned_low = (TUNED.sum() - TUNED[right]) / 200
    tuned_high = (TUNED.sum() - TUNED[right] + 1) / 200
    ported_low, ported_high = (PORTED["1"].sum() - 1) / 200, (PORTED["1"].sum() + 1) / 200
    assert row["ties_low"] == pytest.approx(ported_low - tuned_high)
    assert row["ties_high"] == pytest.approx(ported_high - tuned_low)
    # Ties are of accuracy.
    assert numbers[numbers["metric"] == "f1,none"]["ties"].isna().all()
    settings = {**COMPARED, "models": None, "caption": ""}
    table = make_table("comparisons", [path], settings)
    assert table.text["ties"].tolist()[2:] == ["–", "–"]
    assert table.text["ties"][0].startswith("2: ")
    assert table.notes[0].startswith("Ties: ")


def test_a_comparison_without_ties_has_no_column_for_them(tmp_path: Path) -> None:
    assert "ties" not in arm_comparisons.compare([write(tmp_path, ONE_SEED)], COMPARED)


def test_a_family_is_what_is_compared_with_the_same_arm(tmp_path: Path) -> None:
    paths = [write(tmp_path, ONE_SEED, task=task) for task in ("t", "u", "v")]
    numbers = arm_comparisons.compare(paths, COMPARED)
    for against, family in numbers.groupby("against"):
        assert family["tests"].tolist() == [6] * 6, against
        for name in ("p_value", "p_inside", "p_outside"):
            assert family[f"{name}_holm"].tolist() == statistics.holm(family[name].tolist())
    chosen = {**COMPARED, "tasks": ["u"]}
    assert set(arm_comparisons.compare(paths, chosen)["task"]) == {"u"}


def test_the_verdict_follows_the_margin(tmp_path: Path) -> None:
    path = write(tmp_path, {**ONE_SEED, ("base", "direct", 1): TUNED})
    verdicts = {}
    for margin in (0.1, 3):
        settings = {**COMPARED, "statistics": {**STATISTICS, "margin": margin}}
        table = make_table("comparisons", [path], settings)
        assert f"within ±{margin:g} points" in table.text
        verdicts[margin] = table.text[f"within ±{margin:g} points"].tolist()
    # Against re-fine-tuning, and against no patch, in accuracy and in F1.
    assert verdicts == {
        0.1: ["not shown", "no", "not shown", "no"],
        3: ["yes", "no", "not shown", "no"],
    }
    # In F1 no resample differs, which is no evidence of equivalence.
    assert table.text["difference, points [95%]"].iloc[2] == "+0.0 [–]"


def test_the_comparisons_as_people_read_them(tmp_path: Path) -> None:
    table = make_table("comparisons", [write(tmp_path, ONE_SEED)], COMPARED)
    row = table.text.iloc[1]
    assert list(table.text.columns[:5]) == ["version", "task", "arm", "against", "n"]
    assert row["task"] == "t (acc)"
    assert row["n"] == 200
    gain = 100 * (PORTED["1"].mean() - ZERO_SHOT.mean())
    assert row["difference, points [95%]"].startswith(f"+{gain:.1f} [+")
    assert row["p"] == "<0.001"
    latex = table_formats.to_latex(table.text)
    assert "$<$0.001" in latex
    assert "−" not in latex


def test_more_ported_arms_than_one(tmp_path: Path) -> None:
    cells = {**ONE_SEED, ("base", "half", 1): PORTED["2"]}
    settings = {**COMPARED, "ported": ["ported", "half-ported"]}
    numbers = arm_comparisons.compare([write(tmp_path, cells)], settings)
    assert numbers["arm"].value_counts().to_dict() == {"ported": 4, "half-ported": 4}


def test_several_seeds_are_compared_together(tmp_path: Path) -> None:
    numbers = arm_comparisons.compare([write(tmp_path, TWO_SEEDS)], COMPARED).set_index(
        ["metric", "against"]
    )
    row = numbers.loc[("acc,none", "zero-shot")]
    ported = numpy.mean([values.mean() for values in PORTED.values()])
    assert row["value"] == pytest.approx(ported - ZERO_SHOT.mean())
    assert (row["seeds"], row["test"]) == (2, "t, items × seeds")
    assert numbers.loc[("f1,none", "zero-shot"), "test"] == "bootstrap"
    # Seeds that differ widen the interval beyond that of the items.
    single = arm_comparisons.compare([write(tmp_path, ONE_SEED)], COMPARED).iloc[1]
    assert row["high"] - row["low"] > 2 * (single["high"] - single["low"])


def test_only_seeds_that_both_arms_have_are_compared(tmp_path: Path) -> None:
    cells = {**ONE_SEED, ("base", "direct", 2): PORTED["2"]}
    numbers = arm_comparisons.compare([write(tmp_path, cells)], COMPARED)
    assert numbers["seeds"].tolist() == [1, 2, 1, 2]
    assert numbers.iloc[0]["test"] == "McNemar, exact"
    del cells["base", "direct", 1]
    with pytest.raises(InputError, match="ported and re-fine-tuned share no seed; found 2 and 1"):
        arm_comparisons.compare([write(tmp_path, cells)], COMPARED)


def test_seeds_table(tmp_path: Path) -> None:
    table = make_table("seeds", [write(tmp_path, TWO_SEEDS)], SETTINGS)
    row = table.numbers.iloc[0]
    assert table.numbers[["arm", "metric"]].to_numpy().tolist() == [
        ["ported", "acc,none"],
        ["re-fine-tuned", "acc,none"],
        ["ported", "f1,none"],
        ["re-fine-tuned", "f1,none"],
    ]
    means = [values.mean() for values in PORTED.values()]
    assert (row["mean"], row["sd"]) == pytest.approx((numpy.mean(means), numpy.std(means, ddof=1)))
    mixed = statistics.mixed(numpy.stack(list(PORTED.values()), axis=1))
    assert row["seed_stderr"] == pytest.approx(mixed.seed_stderr)
    text = table.text.iloc[0]
    assert text["mean ± sd"] == f"{100 * row['mean']:.1f} ± {100 * row['sd']:.1f}"
    assert text["seed noise"] == f"{100 * mixed.seed_stderr:.1f}"
    # F1 is not a mean of items, so its noise is not split.
    assert table.text.iloc[2][["item noise", "seed noise"]].tolist() == ["–", "–"]


def test_recovery_has_an_interval_from_the_items(tmp_path: Path) -> None:
    sources = collected(write(tmp_path, ONE_SEED))
    numbers = recovery_numbers(sources, SETTINGS).set_index("metric")
    row = numbers.loc["acc,none"]
    result = statistics.recovery(PORTED["1"], ZERO_SHOT, TUNED, **STATISTICS)
    assert (row["recovery"], row["low"], row["high"]) == pytest.approx(
        (result.value, result.low, result.high)
    )
    assert (row["n"], row["seeds"]) == (200, 1)
    text = make_table("recovery", sources, SETTINGS).text.iloc[0]
    assert text["recovery"] == f"{result.value:.0%} [{result.low:.0%}, {result.high:.0%}]"
    assert text["n"] == "200"
    figure = make_figure("recovery", sources, {**SETTINGS, "width": 6, "height": 3}).figure
    lines = [
        segment[:, 1]
        for line in figure.axes[0].collections
        for segment in line.get_segments()
        if len(segment)
    ]
    assert any(line == pytest.approx((100 * result.low, 100 * result.high)) for line in lines)


def test_the_main_tables_f1_has_the_bootstraps_interval(tmp_path: Path) -> None:
    arms = ["zero-shot", "ported", "re-fine-tuned"]
    cells = {**TWO_SEEDS, ("v2", "direct", 1): numpy.ones(200, int)}
    del cells["v2", "direct", 2]
    sources = collected(write(tmp_path, cells))
    numbers = make_table(
        "main", sources, {**SETTINGS, "arms": {arm: ARMS[arm] for arm in arms}}
    ).numbers
    kinds = numbers.set_index(["metric", "arm"])
    assert set(kinds.loc["acc,none", "interval"]) == {"Wilson"}
    assert set(kinds.loc["f1,none", "interval"]) == {"bootstrap"}
    result = [
        statistics.score(
            numpy.stack([GOLD, numpy.where(right == 1, GOLD, 1 - GOLD)], axis=1), "f1", **STATISTICS
        )
        for right in PORTED.values()
    ]
    ported = kinds.loc[("f1,none", "ported")]
    # Seeds share their items, so the interval is the mean of the seeds' intervals.
    assert ported["low"] == pytest.approx(numpy.mean([one.low for one in result]))
    assert ported["high"] == pytest.approx(numpy.mean([one.high for one in result]))
    # All items are correct, so no resample differs and there is no interval.
    assert kinds.loc[("f1,none", "re-fine-tuned"), ["low", "high"]].isna().all()
    assert kinds.loc[("acc,none", "re-fine-tuned"), "low"] == pytest.approx(0.981, abs=1e-3)


def test_recovery_within_noise_is_not_stated(tmp_path: Path) -> None:
    cells = {**ONE_SEED, ("v2", "direct", 1): ZERO_SHOT}
    # One item more right is a gain, and within noise.
    cells["v2", "direct", 1] = numpy.maximum(ZERO_SHOT, EASE[ZERO_SHOT == 0].min() == EASE)
    table = make_table("recovery", collected(write(tmp_path, cells)), SETTINGS)
    assert (table.numbers["gain"] > 0).any()
    assert table.numbers[["recovery", "low", "high"]].isna().all(axis=None)
    assert table.text["recovery"].tolist() == ["–", "–", "–"]


def test_a_study_may_state_a_least_gain_beside(tmp_path: Path) -> None:
    sources = collected(write(tmp_path, ONE_SEED))
    settings = {**SETTINGS, "recovery": {**RECOVERY, "minimum_gain": 0.9}}
    assert recovery_numbers(sources, settings)["recovery"].isna().all()


def test_items_that_two_arms_do_not_share_are_an_error(tmp_path: Path) -> None:
    ported, tuned = ("base", "direct", 1), ("v2", "direct", 1)
    # Scores as they are without the item.
    cells = {("none", "none", None): ZERO_SHOT, ported: numpy.ones(200, int), tuned: TUNED}
    path = write(tmp_path, cells, dropped={ported: 17})
    with pytest.raises(
        InputError,
        match=r"m/v2/t/v2/direct/1: found 200 items, expected the 199 of m/v2/t/base/direct/1; "
        r"first difference: found item 17 \(t-17\), expected 18 \(t-18\)",
    ):
        arm_comparisons.compare([path], COMPARED)


def test_items_that_were_cut_off_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, ONE_SEED)
    samples = item_scores.samples_path(path)
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:-3]))
    with pytest.raises(InputError, match="found 197 rows of cell 2, expected 200; score it again"):
        item_scores.read([path])
    samples.write_text("".join([lines[0], *lines[:-1]]))
    with pytest.raises(InputError, match="found 201 rows of cell 0, expected 200"):
        item_scores.read([path])
    samples.write_text("".join([*lines[:1], *lines[:1], *lines[2:]]))
    with pytest.raises(InputError, match="found item 199 more than once"):
        item_scores.read([path])
    samples.unlink()
    with pytest.raises(InputError, match=r"t\.samples\.jsonl: no such file"):
        item_scores.read([path])


def test_a_metric_that_is_no_mean_of_its_items_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Two to the power of 1.5 bits, as perplexity is made.
    path = write(tmp_path, ONE_SEED, metrics={"bits": 2**1.5})
    with caplog.at_level(logging.WARNING):
        result = item_scores.read([path])
    assert set(result["metric"]) == {"acc,none", "f1,none"}
    assert "bits,none has no paired tests: it is not the mean of its items" in caplog.text
    assert set(item_scores.read([write(tmp_path, ONE_SEED, metrics={"bits": 1.5})])["metric"]) == {
        *("acc,none", "f1,none", "bits,none"),
    }


def test_a_metric_that_is_no_share_has_no_margin(tmp_path: Path) -> None:
    path = write(tmp_path, ONE_SEED, metrics={"bits": 1.5})
    table = make_table("comparisons", [path], COMPARED)
    row = table.numbers.set_index("metric").loc["bits,none"].iloc[0]
    assert math.isnan(row["p_inside"])
    assert math.isnan(row["negative"])
    shown = table.text[table.text["task"] == "t (bits)"].iloc[0]
    assert shown[["within ±5 points", "newly wrong, % of n"]].tolist() == ["–", "–"]
    assert shown["difference, points [95%]"] == "+0.0 [–]"


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_item_decides_nothing(tmp_path: Path, seeds: int) -> None:
    cells = {("none", "none", None): numpy.array([0])}
    for seed in range(seeds):
        right = numpy.array([1])
        cells |= {("base", "direct", seed): right, ("v2", "direct", seed): right}
    sources = collected(write(tmp_path, cells))
    assert make_table("main", sources, {**SETTINGS, "kind": "main"}).numbers["stderr"].isna().all()
    assert make_table("recovery", sources, SETTINGS).text["recovery"].unique().tolist() == ["–"]
    make_figure("recovery", sources, {**SETTINGS, "width": 6, "height": 3})
    for kind, settings in (("comparisons", COMPARED), ("seeds", SETTINGS)):
        assert make_table(kind, sources[1:], settings).text.empty


def test_tables_without_rows_have_their_columns(tmp_path: Path) -> None:
    path = write(tmp_path, {("none", "none", None): ZERO_SHOT})
    for kind, settings in (("comparisons", COMPARED), ("seeds", SETTINGS)):
        table = make_table(kind, [path], settings)
        assert len(table.text) == len(table.numbers) == 0
        assert "task" in table_formats.to_markdown(table.text)
        assert isinstance(table_formats.to_latex(table.text), str)
        assert {"model", "value", "mean"} & set(pandas.DataFrame(table.numbers).columns)
