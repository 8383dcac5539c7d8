"""Full-weight training in bfloat16 moves the weights as training in float32 does."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from conftest import PROJECT

from portllm.training import evolution, recipe_defaults
from portllm.weights.checkpoints import Checkpoint

pytestmark = pytest.mark.slow

# Axolotl takes ten seconds to start, so all trainings share a process.
TRAIN_ALL = "import sys; from axolotl.cli.train import do_cli; [do_cli(r) for r in sys.argv[1:]]"
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"bf16": False},
    "mixed": {"bf16": True},
    "bfloat16": {"bf16": True, "bfloat16": True},
}


@pytest.fixture(scope="module")
def movements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """Train in each dtype; return the norm of the update and the share of weights that moved."""
    folder = tmp_path_factory.mktemp("evolutions")
    model = tiny.save_model(
        folder / "model", dtype=torch.bfloat16, max_position_embeddings=512, initializer_range=0.02
    )
    row = json.dumps({"instruction": "is it so?", "input": "", "output": "yes, it is so"})
    (folder / "corpus.jsonl").write_text(f"{row}\n" * 64)
    shipped = yaml.safe_load((PROJECT / "config/axolotl/full.yaml").read_text())
    few = {
        "max_steps": 10,
        "warmup_ratio": 0.0,
        "sample_packing": False,
        "optimizer": "adamw_torch",
        "datasets": [{"type": "alpaca"}],
        "sequence_len": 512,
        "gradient_checkpointing": False,
        "pad_to_sequence_len": False,
    }
    recipes = []
    for name, dtype in DTYPES.items():
        final = evolution.render(
            recipe_defaults.complete({**shipped, **few, **dtype}, Checkpoint(model).config, None),
            model=model,
            corpus=folder / "corpus.jsonl",
            work=folder / name,
            prepared=folder / "prepared",
            seed=1,
        )
        recipes.append(folder / f"{name}.yaml")
        recipes[-1].write_text(yaml.safe_dump(final))
    done = subprocess.run(
        [PROJECT / ".venvs/train/bin/python", "-c", TRAIN_ALL, *recipes],
        env=evolution.environment(folder / "cost.json"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: _movement(model, folder / name / "output") for name in DTYPES}


def _movement(before: Path, after: Path) -> tuple[float, float]:
    old, new = Checkpoint(before), Checkpoint(after)
    changes = [(new.read(name).float() - old.read(name).float()).flatten() for name in old.shapes]
    change = torch.cat(changes)
    return float(change.norm()), float((change != 0).float().mean())


def test_mixed_precision_keeps_float32_master_weights(
    movements: dict[str, tuple[float, float]],
) -> None:
    norm, share = movements["mixed"]
    expected_norm, expected_share = movements["float32"]
    assert norm == pytest.approx(expected_norm, rel=0.05)
    assert share == pytest.approx(expected_share, abs=0.05)


def test_weights_of_bfloat16_would_lose_updates(
    movements: dict[str, tuple[float, float]],
) -> None:
    norm, share = movements["bfloat16"]
    expected_norm, expected_share = movements["float32"]
    assert norm < 0.9 * expected_norm
    assert share < 0.75 * expected_share
