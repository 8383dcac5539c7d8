"""Write small result files of lm-eval, as an external study would publish them."""

import json
from pathlib import Path
from typing import Any

STUDY: dict[str, Any] = {
    "directory": "elsewhere",
    "origin": "a paper",
    "models": ["m"],
    "tasks": ["boolq", "gsm8k"],
    "versions": {"base": 0, "first": 1, "second": 2, "third": 3, "fourth": 4},
    "rename": {"task": {"mathematics": "gsm8k"}},
    "cells": [
        {"match": {"path": r"^bare/v(?P<applied_to>\d)/"}, "trained_on": "none"},
        {
            "match": {
                "path": r"^patched/(?P<task>\w+)_(?P<seed>\d+)_t(?P<trained_on>\d)/",
                "pretrained": r"/v(?P<applied_to>\d)$",
            }
        },
    ],
}
METRICS = {
    "boolq": ["acc,none"],
    "gsm8k": ["exact_match,strict-match", "exact_match,flexible-extract"],
}
COUNT = 200


def result(task: str, value: float, *, update: int, patch: str | None = None) -> dict[str, Any]:
    """Return a result document of lm-eval with the keys that the importer reads.

    `patch` is the directory of an adapter.
    """
    scores: dict[str, Any] = {"alias": task}
    for metric in METRICS.get(task, ["acc,none"]):
        scores[metric] = value
        scores[metric.replace(",", "_stderr,")] = (value * (1 - value) / (COUNT - 1)) ** 0.5
    arguments = {"pretrained": f"/somewhere/v{update}"} | ({"peft": patch} if patch else {})
    return {
        "results": {task: scores},
        "configs": {task: {"task": task}},
        "versions": {task: 2.0},
        "n-shot": {task: 0},
        "n-samples": {task: {"original": COUNT, "effective": COUNT}},
        "config": {
            "model": "hf",
            # Older releases write a string.
            "model_args": ",".join(f"{name}={value}" for name, value in arguments.items())
            if update % 2
            else arguments,
            "model_dtype": "torch.float16",
            "batch_size": 64,
        },
        "date": 1_780_000_000.5 + update,
        "lm_eval_version": "0.4.11",
        "transformers_version": "5.1.0",
    }


def save(path: Path, document: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def save_all(directory: Path, updates: int = 5) -> Path:
    """Save results of two tasks: un-patched, with the base's patch and with each version's own."""
    for update in range(updates):
        for task, name in (("boolq", "boolq"), ("gsm8k", "mathematics")):
            file = f"results_2026-06-0{update + 1}T10-00-00.5.json"
            bare = result(task, 0.5, update=update)
            save(directory / f"bare/v{update}/{task}" / file, bare)
            for trained_on in {0, update}:
                folder = f"patched/{name}_42_t{trained_on}"
                value = 0.9 - (0 if trained_on else 0.03 * update)
                patched = result(task, value, update=update, patch=f"/somewhere/{folder}")
                save(directory / folder / file, patched)
    return directory
