"""Tables and figures over updates, from scores that are known."""

from pathlib import Path
from typing import Any

import pandas
import pytest

from portllm import figures, scores, tables
from portllm.errors import InputError

ARMS = {
    "un-patched": {"trained_on": "none", "applied_to": "all", "method": "direct"},
    "carried": {"trained_on": "base", "applied_to": "all", "method": "direct"},
    "step-wise": {"trained_on": "same", "applied_to": "all", "method": "direct"},
}
CHAIN = ["base", "first", "second", "third", "fourth"]
UPDATES = {"m": {version: number for number, version in enumerate(CHAIN)}}
SETTINGS = {"arms": ARMS, "updates": UPDATES, "lifetime": {"share_of_gain": 0.5}}


def cell(version: str, trained_on: str, seed: str, task: str, value: float) -> list[Any]:
    method = "none" if trained_on == "none" else "direct"
    return ["m", task, version, trained_on, method, seed, "acc,none", value, 0.02, 400]


def save_scores(path: Path, rows: list[list[Any]]) -> Path:
    pandas.DataFrame(rows, columns=scores.COLUMNS).to_csv(path, index=False)
    return path


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
    text = tables.temporal([source], SETTINGS).text
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
        tables.temporal([source], {**SETTINGS, "metrics": ["f1,none"]})


def test_figure_over_updates(source: Path) -> None:
    settings = {**SETTINGS, "width": 7.0, "height": 2.5}
    figure = figures.lifetime([source], settings)
    assert [axes.get_title() for axes in figure.axes] == ["easy", "hard"]
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
    segments = carried.lines[2][0].get_segments()
    assert segments[0][1][1] - segments[0][0][1] == pytest.approx(2 * 1.96 * 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(ARMS)
