"""Choices of equal log-likelihood: recorded for each item, counted for each cell."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import PROJECT

from portllm.data import tasks
from portllm.scoring import hf, ties
from portllm.scoring.cache import ScoringSettings


@pytest.mark.parametrize(
    ("values", "target", "acc", "expected"),
    [
        ([-1.0, -2.0], 0, 1.0, None),
        ([-1.0, -1.0], 0, 1.0, [0.0, 1.0]),
        ([-1.0, -1.0], 1, 0.0, [0.0, 1.0]),
        ([-1.0, -1.0, -2.0], 2, 0.0, [0.0, 0.0]),
        ([-2.0, -2.0, -1.0], 2, 1.0, None),
        ([-1.0, -1.0, -2.0], "an answer", 0.0, [0.0, 1.0]),
    ],
)
def test_the_range_of_an_item(
    values: list[float], target: Any, acc: float, expected: list[float] | None
) -> None:
    answers = [(value, False) for value in values]
    assert ties.accuracy_range(answers, target, acc) == expected


def test_ties_of_bfloat16_are_recorded(tmp_path: Path) -> None:
    version = tiny.save_model(tmp_path / "model", max_position_embeddings=512)
    task = tasks.load("demo_yes_no", include=str(PROJECT / "resources" / "demo"))
    tied = {}
    for dtype in ("float32", "bfloat16"):
        settings = ScoringSettings(limit=40, batch_size=8, dtype=dtype)
        samples = hf.HfScorer(version, settings).score(task, None).samples
        tied[dtype] = [ties.TIED in sample for sample in samples]
        best = [len(ties.best_choices(sample["filtered_resps"])) for sample in samples]
        assert tied[dtype] == [count > 1 for count in best]
    assert not any(tied["float32"])
    assert 0 < sum(tied["bfloat16"]) < 40
