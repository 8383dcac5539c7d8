"""lm-eval's unmodified sst2, rte and gsm8k, from a local mirror of the hub."""

import os
import re
from pathlib import Path

import pytest
from conftest import PROJECT, run_program
from datasets import load_from_disk

from portllm.storage import files

MIRROR = Path(os.environ.get("PORTLLM_HUB_MIRROR", PROJECT.parent / "shared" / "hub"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MIRROR / "nyu-mll" / "glue").is_dir(),
        reason=f"no real data: {MIRROR} holds no nyu-mll/glue; PORTLLM_HUB_MIRROR may name another",
    ),
]

# Rows of the published datasets: training, evaluation.
TASKS = {
    "sst2": (
        67_349,
        "validation",
        872,
        r"\nQuestion: Is this sentence positive or negative\?\nAnswer:$",
    ),
    "rte": (2_490, "validation", 277, r"\nQuestion: .+ True or False\?\nAnswer:$"),
    "gsm8k": (7_473, "test", 1_319, r"^Question: (.|\n)+\nAnswer:$"),
}
COMPLETIONS = {
    "sst2": r" (negative|positive)",
    "rte": r" (True|False)",
    "gsm8k": r" (.|\n)+\n#### \S+",
}


@pytest.mark.parametrize("task", TASKS)
def test_task_data(tmp_path: Path, task: str) -> None:
    training, split, evaluation, prompt = TASKS[task]
    output = tmp_path / task
    done = run_program(
        *("make_task_data.py", "--lm-eval", task, "--hub-mirror", str(MIRROR)),
        *("--output", str(output)),
    )
    assert done.returncode == 0, done.stderr
    rows = list(files.read_json_lines(output / "train.jsonl"))
    assert len(rows) == training
    assert all(re.search(prompt, row["prompt"]) for row in rows)
    assert all(re.fullmatch(COMPLETIONS[task], row["completion"]) for row in rows)
    assert len(load_from_disk(str(output / "dataset"))[split]) == evaluation
