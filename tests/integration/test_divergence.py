"""A diverged training ends with one line and without a result, in Axolotl too."""

import json
import subprocess
from pathlib import Path

import pytest
import tiny
from conftest import PROJECT

pytestmark = pytest.mark.slow

RATE = 1e30


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [PROJECT / ".venvs/train/bin/python", PROJECT / "workflow_scripts" / program]
    return subprocess.run(
        [str(word) for word in (*command, *arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("base") / "model", max_position_embeddings=512)


def test_a_diverged_patch_is_not_written(tmp_path: Path, model: Path) -> None:
    (tmp_path / "task").mkdir()
    row = json.dumps({"prompt": "is it so?", "completion": " yes"})
    (tmp_path / "task" / "train.jsonl").write_text(f"{row}\n" * 16)
    options = {"--learning-rate": RATE, "--max-steps": 3, "--batch-size": 4}
    done = run(
        "train_patch.py",
        *("--model", model, "--task", tmp_path / "task"),
        *(word for option in options.items() for word in option),
        *("--work", tmp_path / "work", "--output", tmp_path / "patch"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: patch training diverged: the loss is nan at step 2 of 3; "
        "lower patch.learning_rate (found 1e+30)"
    )
    assert not (tmp_path / "patch").exists()


def test_a_diverged_evolution_is_not_written(tmp_path: Path, model: Path) -> None:
    row = json.dumps({"instruction": "is it so?", "input": "", "output": "yes, it is so"})
    (tmp_path / "corpus.jsonl").write_text(f"{row}\n" * 64)
    overrides = {"learning_rate": RATE, "max_steps": 12, "micro_batch_size": 4, "logging_steps": 2}
    done = run(
        "evolve.py",
        *("--model", model, "--corpus", tmp_path / "corpus.jsonl"),
        *("--recipe", PROJECT / "config/axolotl/demo_full.yaml"),
        *("--overrides", json.dumps(overrides)),
        *("--work", tmp_path / "work", "--output", tmp_path / "evolved"),
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Axolotl failed on ")
    # The Trainer logs every second step, and has warmed up after the first.
    assert last.endswith(
        "axolotl.yaml: training diverged: the loss is nan at step 4 of 12; lower learning_rate in "
        "the recipe (found 1e+30)"
    )
    assert not (tmp_path / "evolved").exists()
