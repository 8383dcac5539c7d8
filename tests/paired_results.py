"""Result files of scoring jobs whose items are known."""

from pathlib import Path
from typing import Any

import numpy
from sklearn.metrics import f1_score

from portllm.comparison import item_scores, score_table
from portllm.storage import files

ARMS = {
    "zero-shot": {"trained_on": "none", "applied_to": "all", "method": "direct"},
    "ported": {"trained_on": "base", "applied_to": "later", "method": "direct"},
    "half-ported": {"trained_on": "base", "applied_to": "later", "method": "half"},
    "re-fine-tuned": {"trained_on": "same", "applied_to": "later", "method": "direct"},
}
RECOVERY = {
    "minimum_gain": 0.0,
    "zero_shot": "zero-shot",
    "ported": "ported",
    "re_fine_tuned": "re-fine-tuned",
}
STATISTICS = {"level": 0.95, "resamples": 2000, "seed": 1}
SETTINGS: dict[str, Any] = {"arms": ARMS, "recovery": RECOVERY, "statistics": STATISTICS}
COMPARED = {**SETTINGS, "ported": ["ported"], "statistics": {**STATISTICS, "margin": 5}}

GENERATOR = numpy.random.default_rng(11)
EASE = GENERATOR.random(200)
GOLD = (GENERATOR.random(200) < 0.4).astype(int)


def right(skill: float, noise: float = 0.05) -> numpy.ndarray:
    """Items that an arm has right: easy ones, give or take."""
    return (EASE + GENERATOR.normal(0, noise, 200) < skill).astype(int)


ZERO_SHOT, TUNED = right(0.3), right(0.8)
PORTED = {"1": right(0.75), "2": right(0.65)}
Cells = dict[tuple[str, str, int | None], numpy.ndarray]
ONE_SEED: Cells = {
    ("none", "none", None): ZERO_SHOT,
    ("base", "direct", 1): PORTED["1"],
    ("v2", "direct", 1): TUNED,
}
TWO_SEEDS: Cells = {
    **ONE_SEED,
    ("base", "direct", 2): PORTED["2"],
    ("v2", "direct", 2): right(0.8),
}


def write(
    directory: Path,
    cells: Cells,
    *,
    task: str = "t",
    metrics: dict[str, float] | None = None,
    dropped: dict[tuple[str, str, int | None], int] | None = None,
    tied: dict[tuple[str, str, int | None], dict[int, list[float]]] | None = None,
) -> Path:
    """A scoring job's two files; accuracy and F1 of each cell, less the items that are dropped.

    Cells have up to 200 items.

    `metrics` are scores that are not what the items give. `tied` has the worst and best accuracy of
    each item whose choice is a tie.
    """
    described, rows = [], []
    for number, (cell, values) in enumerate(cells.items()):
        trained_on, method, seed = cell
        names = {"trained_on": trained_on, "method": method, "seed": seed}
        of_cell = (tied or {}).get(cell, {})
        count, gold = len(values), GOLD[: len(values)]
        stderr = 0.03 if count > 1 else None  # as lm-eval
        predicted = numpy.where(values == 1, gold, 1 - gold)
        scored = {"acc": float(values.mean()), "f1": float(f1_score(gold, predicted))}
        kept = [item for item in range(count) if item != (dropped or {}).get(cell)]
        described.append(
            {
                **names,
                "key": str(number),
                "samples": len(kept),
                "metrics": {
                    f"{metric},none": {"value": value, "stderr": stderr, "n": count}
                    for metric, value in (scored | (metrics or {})).items()
                },
            }
        )
        rows += [
            {
                "cell": str(number),
                **names,
                "doc_id": item,
                "doc_hash": f"{task}-{item}",
                "filter": "none",
                "metrics": {
                    "acc": float(values[item]),
                    "f1": [int(GOLD[item]), int(predicted[item])],
                    "bits": 1.5,
                },
                **({"tied": of_cell[item]} if item in of_cell else {}),
            }
            # In no order that anybody should rely on.
            for item in reversed(kept)
        ]
    path = directory / f"{task}.json"
    files.write_json(
        path,
        {
            "names": {"model": "m", "applied_to": "v2", "task": task},
            "lm_eval": {"task": task, "version": 1.0},
            "cells": described,
        },
    )
    files.write_json_lines(item_scores.samples_path(path), rows)
    return path


def collected(path: Path) -> list[Path]:
    """The table of scores and the result that it is of."""
    table = path.parent / "scores.csv"
    score_table.collect([path]).to_csv(table, index=False)
    return [table, path]
