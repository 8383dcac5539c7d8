"""Tables and figures over updates, from scores that are known."""

from pathlib import Path

import pytest
from exhibit_making import make_figure, make_table
from labels import assert_labels_stand_apart
from scipy import stats
from update_scores import (
    ARMS,
    CHAIN,
    DECAY,
    FLAT,
    SETTINGS,
    TWO_ARMS,
    cell,
    chain_scores,
    save_scores,
)

from portllm.errors import InputError
from portllm.reporting import table_formats


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A chain of four updates, its rows in no order; `hard` has not been scored at the second."""
    rows = []
    for task in ("easy", "hard"):
        for number in (3, 0, 4, 1, 2):
            version = CHAIN[number]
            if (task, number) == ("hard", 2):
                continue
            rows.append(cell(version, "none", "none", task, 0.5))
            for seed, more in (("1", 0.01), ("2", -0.01)):
                rows.append(cell(version, "base", seed, task, 0.9 - 0.05 * number + more))
                if number:
                    rows.append(cell(version, version, seed, task, 0.9 + more))
    rows.append(cell("side", "base", "1", "easy", 0.1))
    return save_scores(tmp_path / "scores.csv", rows)


def test_table_over_updates(source: Path) -> None:
    text = make_table("temporal", [source], SETTINGS).text
    assert list(text.columns) == ["task", "arm", "n", *(f"update {n}" for n in range(5))]
    assert text[["task", "arm"]].to_numpy().tolist() == [
        [task, arm] for task in ("easy", "hard") for arm in ARMS
    ]
    carried = text[(text["task"] == "easy") & (text["arm"] == "carried")].iloc[0]
    assert carried["n"] == 400
    assert carried["update 0"] == "90.0 ± 2.0"
    assert carried["update 3"] == "75.0 ± 2.0"
    # The patch of the base on the base belongs to both: it is the first of each.
    step_wise = text[(text["task"] == "hard") & (text["arm"] == "step-wise")].iloc[0]
    assert step_wise["update 0"] == "90.0 ± 2.0"
    assert step_wise["update 2"] == "–"


def test_a_selection_of_metrics_without_scores_is_refused(source: Path) -> None:
    with pytest.raises(InputError, match="no score of the selection"):
        make_table("temporal", [source], {**SETTINGS, "metrics": ["f1,none"]})


def test_figure_over_updates(source: Path) -> None:
    settings = {**SETTINGS, "width": 7.0, "height": 2.5}
    figure = make_figure("lifetime", [source], settings).figure
    assert [axes.get_title() for axes in figure.axes] == ["easy\nn = 400", "hard\nn = 400"]
    for axes in figure.axes:
        assert axes.get_ylabel() == "accuracy (%)"
        assert "update" in axes.get_xlabel()
        lines = [container.lines[0] for container in axes.containers]
        # Told apart without colour.
        assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(ARMS)
        assert len({line.get_color() for line in lines}) == len(ARMS)
    carried = figure.axes[0].containers[1]
    assert carried.get_label() == "carried"
    assert list(carried.lines[0].get_ydata()) == pytest.approx([90, 85, 80, 75, 70])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(ARMS)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bars_are_wilsons_intervals_at_the_level(tmp_path: Path, level: float) -> None:
    # Scores of 100 % have a standard error of zero, and are not certain.
    rows = [cell(version, "base", "1", "t", 1.0) for version in CHAIN]
    settings = {**TWO_ARMS, "statistics": {"level": level}, "width": 4.0, "height": 2.5}
    drawing = make_figure("lifetime", [save_scores(tmp_path / "scores.csv", rows)], settings)
    (axes,) = drawing.figure.axes
    (low, high) = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    reference = stats.binomtest(400, 400).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((100 * reference.low, 100))
    row = drawing.numbers.iloc[0]
    assert row[["n", "interval", "level"]].tolist() == [400, "Wilson", level]
    assert (row["low"], row["high"]) == pytest.approx((reference.low, 1))
    (legend,) = drawing.figure.legends
    assert legend.get_title().get_text() == f"bars: {level:.0%} intervals".replace("%", " %") + (
        " over the items"
    )


def test_a_score_whose_error_is_zero_has_no_normal_interval(tmp_path: Path) -> None:
    rows = [
        [*cell(version, "base", "1", "t", 1.0)[:6], "f1,none", 1.0, 0.0, 9] for version in CHAIN
    ]
    settings = {**TWO_ARMS, "width": 4.0, "height": 2.5}
    numbers = make_figure(
        "lifetime", [save_scores(tmp_path / "scores.csv", rows)], settings
    ).numbers
    assert numbers[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("updates", [5, 11, 41])
def test_labels_of_many_tasks_and_updates_stand_apart(tmp_path: Path, updates: int) -> None:
    chain = ["base", *(f"update-{number}" for number in range(1, updates))]
    tasks = ["winogrande", "boolq", "arc_easy", "arc_challenge", "sst2", "mnli"]
    rows = [cell(version, "base", "1", task, 0.9) for version in chain for task in tasks]
    for metric in ("exact_match,strict-match", "exact_match,flexible-extract"):
        rows += [[*cell(v, "base", "1", "gsm8k", 0.7)[:6], metric, 0.7, 0.02, 1319] for v in chain]
    numbers = {version: number for number, version in enumerate(chain)}
    source = save_scores(tmp_path / "scores.csv", rows)
    settings = {**SETTINGS, "updates": {"m": numbers}, "width": 7.0, "height": 2.4}
    assert_labels_stand_apart(make_figure("lifetime", [source], settings).figure)


def test_the_level_of_a_trends_intervals_is_the_studys(tmp_path: Path) -> None:
    source = chain_scores(tmp_path / "scores.csv")
    result = {}
    for level in (0.8, 0.95):
        settings = {**TWO_ARMS, "statistics": {"level": level}}
        table = make_table("trend", [source], settings)
        result[level] = table.numbers.set_index(["task", "arm"]).loc[("decays", "carried")]
        assert f"{100 * level:g} % intervals" in table.notes[0]
        assert table.numbers["level"].tolist() == [level] * 4
        assert table.text["n"].tolist() == table.numbers["n"].tolist() == [400] * 4
    narrow, wide = result[0.8], result[0.95]
    for low, high in (
        ("low", "high"),
        ("gain_low", "gain_high"),
        ("un_patched_low", "un_patched_high"),
        ("forecast_low", "forecast_high"),
    ):
        assert wide[low] < narrow[low] < narrow[high] < wide[high]
    half = stats.t.ppf(0.9, 3) * stats.linregress(range(5), DECAY).stderr
    assert narrow["high"] - narrow["slope"] == pytest.approx(half)


def test_trends_and_their_family(tmp_path: Path) -> None:
    table = make_table("trend", [chain_scores(tmp_path / "scores.csv")], TWO_ARMS)
    numbers = table.numbers.set_index(["task", "arm"])
    decays, holds = numbers.loc[("decays", "carried")], numbers.loc[("holds", "carried")]
    expected = stats.linregress(range(5), DECAY)
    assert decays["slope"] == pytest.approx(expected.slope)
    assert decays["p"] == pytest.approx(expected.pvalue)
    half = stats.t.ppf(0.975, 3) * expected.stderr
    assert decays["low"] == pytest.approx(expected.slope - half)
    assert decays["high"] == pytest.approx(expected.slope + half)
    # Holm's smallest p is multiplied by the number of the arm's slopes: two, not the table's four.
    assert decays["p_holm"] == pytest.approx(2 * expected.pvalue)
    assert holds["p_holm"] == pytest.approx(max(holds["p"], decays["p_holm"]))
    # The row has the un-patched model's trend too, and the gain's is the difference.
    bare = numbers.loc[("decays", "un-patched")]
    assert decays["un_patched_slope"] == pytest.approx(bare["slope"])
    assert decays["gain_slope"] == pytest.approx(decays["slope"] - bare["slope"])
    text = table.text.set_index(["task", "arm"])
    assert text.loc[("decays", "carried"), "slope"].startswith("−5.000 [")
    assert any("Holm" in note for note in table.notes)


def test_forecast_of_a_patch_that_decays(tmp_path: Path) -> None:
    source = chain_scores(tmp_path / "scores.csv")
    numbers = make_table("trend", [source], TWO_ARMS).numbers.set_index(["task", "arm"])
    decays = numbers.loc[("decays", "carried")]
    gains = [score - bare for score, bare in zip(DECAY, FLAT, strict=True)]
    line = stats.linregress(range(5), gains)
    assert decays["first_gain"] == pytest.approx(0.4)
    assert decays["forecast"] == pytest.approx((0.2 - line.intercept) / line.slope)
    assert decays["forecast_low"] < decays["forecast"] < decays["forecast_high"]
    text = make_table("trend", [source], TWO_ARMS).text.set_index(["task", "arm"])
    shown = text["below 50% of its gain"]
    assert shown["decays", "carried"].startswith("update 4 [")
    assert shown["holds", "carried"].startswith("no decline shown")
    assert shown["holds", "un-patched"] == "–"
    # As good as no patch: later than half of the gain.
    bare = {**TWO_ARMS, "lifetime": {"share_of_gain": 0}}
    later = make_table("trend", [source], bare).numbers.set_index(["task", "arm"])
    assert later.loc[("decays", "carried"), "forecast"] == pytest.approx(
        -line.intercept / line.slope
    )


def test_too_few_updates_are_no_trend_and_no_forecast(tmp_path: Path) -> None:
    source = chain_scores(tmp_path / "four.csv", updates=4)
    four = make_table("trend", [source], TWO_ARMS)
    assert four.numbers["p"].notna().all()
    assert four.numbers["forecast"].isna().all()
    assert any(
        note.startswith("No forecast for decays carried, holds carried: a forecast needs scores")
        for note in four.notes
    )
    two = make_table("trend", [chain_scores(tmp_path / "two.csv", updates=2)], TWO_ARMS)
    assert two.numbers["p"].isna().all()
    assert set(two.text["slope"]) == {"–"}
    assert any(note.startswith("No slope for decays un-patched, ") for note in two.notes)


def test_without_the_un_patched_model_there_is_no_gain_to_lose(tmp_path: Path) -> None:
    source = chain_scores(tmp_path / "scores.csv", un_patched=False)
    table = make_table("trend", [source], TWO_ARMS)
    assert table.numbers["slope"].notna().all()
    assert set(table.text["below 50% of its gain"]) == {"–"}
    assert any("no score of the un-patched model" in note for note in table.notes)


def test_a_patch_without_a_gain_has_no_forecast(tmp_path: Path) -> None:
    rows = [
        cell(version, trained_on, seed, "t", 0.5)
        for version in CHAIN
        for trained_on, seed in (("none", "none"), ("base", "1"))
    ]
    table = make_table("trend", [save_scores(tmp_path / "scores.csv", rows)], TWO_ARMS)
    assert any("no gain at the first update" in note for note in table.notes)


def test_seeds_that_differ_between_updates_are_told(tmp_path: Path) -> None:
    rows = [cell(version, "base", "1", "t", 0.9) for version in CHAIN]
    rows.append(cell("second", "base", "2", "t", 0.5))
    table = make_table("trend", [save_scores(tmp_path / "scores.csv", rows)], TWO_ARMS)
    assert "The number of seeds differs between the updates of t carried." in table.notes


def test_notes_stand_under_the_text(source: Path) -> None:
    text = make_table("temporal", [source], TWO_ARMS).text
    notes = ["Left out: a_b/c.json (50 % & less)."]
    assert table_formats.to_markdown(text, notes).endswith(
        "|\n\nLeft out: a_b/c.json (50 % & less).\n"
    )
    latex = table_formats.to_latex(text, notes)
    assert latex.index(r"\end{tabular}") < latex.index("footnotesize")
    assert r"(50 \% \& less)" in latex
    assert r"a\_\allowbreak{}b/\allowbreak{}c.json" in latex
