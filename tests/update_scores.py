"""Scores over a chain of updates that are known."""

from pathlib import Path
from typing import Any

import pandas

from portllm.comparison import score_table

ARMS = {
    "un-patched": {"trained_on": "none", "applied_to": "all", "method": "direct"},
    "carried": {"trained_on": "base", "applied_to": "all", "method": "direct"},
    "step-wise": {"trained_on": "same", "applied_to": "all", "method": "direct"},
}
CHAIN = ["base", "first", "second", "third", "fourth"]
UPDATES = {"m": {version: number for number, version in enumerate(CHAIN)}}
SETTINGS = {
    "arms": ARMS,
    "updates": UPDATES,
    "lifetime": {"share_of_gain": 0.5},
    "statistics": {"level": 0.95},
}


def cell(version: str, trained_on: str, seed: str, task: str, value: float) -> list[Any]:
    method = "none" if trained_on == "none" else "direct"
    return ["m", task, version, trained_on, method, seed, "acc,none", value, 0.02, 400]


def save_scores(path: Path, rows: list[list[Any]]) -> Path:
    pandas.DataFrame(rows, columns=score_table.COLUMNS).to_csv(path, index=False)
    return path


DECAY = [0.9, 0.84, 0.81, 0.74, 0.7]
HOLD = [0.9, 0.91, 0.9, 0.89, 0.9]
FLAT = [0.5, 0.51, 0.5, 0.49, 0.5]
TWO_ARMS = {**SETTINGS, "arms": {arm: ARMS[arm] for arm in ("un-patched", "carried")}}


def chain_scores(path: Path, *, updates: int = 5, un_patched: bool = True) -> Path:
    """One task whose carried patch decays and one whose patch holds."""
    rows = []
    for number, version in enumerate(CHAIN[:updates]):
        for task, carried in (("decays", DECAY), ("holds", HOLD)):
            if un_patched:
                rows.append(cell(version, "none", "none", task, FLAT[number]))
            rows.append(cell(version, "base", "1", task, carried[number]))
    return save_scores(path, rows)
