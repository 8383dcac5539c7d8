"""A finished training is not repeated although Snakemake lost its result."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from conftest import PROJECT

from portllm.jobs.supervision import SNAKEMAKE_PID
from portllm.storage import files

pytestmark = pytest.mark.slow


def test_a_finished_patch_is_restored(tmp_path: Path) -> None:
    model, output = tiny.save_model(tmp_path / "model"), tmp_path / "patch"
    (tmp_path / "task").mkdir()
    row = json.dumps({"prompt": "is it so?", "completion": " yes"})
    (tmp_path / "task" / "train.jsonl").write_text(f"{row}\n" * 8)

    def train() -> str:
        command = [
            *(PROJECT / ".venvs/train/bin/python", PROJECT / "workflow_scripts/train_patch.py"),
            *("--model", model, "--task", tmp_path / "task", "--max-steps", 2),
            *("--work", tmp_path / "work", "--output", output),
        ]
        variables = {**os.environ, SNAKEMAKE_PID: str(os.getpid())}
        words = list(map(str, command))
        done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    assert "restored its result" not in train()
    before = files.hash_files(output)
    shutil.rmtree(output)
    assert "restored its result" in train()
    assert files.hash_files(output) == before
