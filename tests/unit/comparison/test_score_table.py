"""Scores that are not finite are neither collected nor compared."""

import json
import math
from pathlib import Path

import pytest
from paired_results import ONE_SEED, collected, write

from portllm.comparison import item_scores, score_table
from portllm.errors import InputError
from portllm.storage import files


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_not_collected(tmp_path: Path, value: float) -> None:
    path = write(tmp_path, ONE_SEED, metrics={"acc": value})
    message = rf"t\.json: the score of m/t/v2/none/none/none/acc,none is {value}, expected a number"
    with pytest.raises(InputError, match=message):
        score_table.collect([path])


@pytest.mark.parametrize("text", ["nan", "inf", "", "much"])
def test_a_score_that_is_not_finite_is_not_read(tmp_path: Path, text: str) -> None:
    table, _ = collected(write(tmp_path, ONE_SEED))
    assert len(score_table.read(table)) == 6
    lines = table.read_text().splitlines()
    columns = lines[2].split(",")
    columns[-3] = text
    table.write_text("\n".join([*lines[:2], ",".join(columns), *lines[3:]]))
    with pytest.raises(InputError, match=rf"scores\.csv: the score of m/t/.* is {text}, expected"):
        score_table.read(table)


def test_items_whose_log_likelihood_is_nan_are_not_compared(tmp_path: Path) -> None:
    path = write(tmp_path, ONE_SEED)
    samples = item_scores.samples_path(path)
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rows[-1]["resps"] = [[[math.nan, False]], [[-1.0, True]]]
    files.write_json_lines(samples, rows)
    message = r"t\.samples\.jsonl: v2/direct/1: 1 of 2 log-likelihoods are not finite"
    with pytest.raises(InputError, match=message):
        item_scores.read([path])
