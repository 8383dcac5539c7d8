"""Recipes are checked against Axolotl's keys, and for what a training job cannot do."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT

from portllm.errors import InputError
from portllm.study import axolotl_recipes
from portllm.study.yaml_files import KeyOrigins

LIGER = "axolotl.integrations.liger.LigerPlugin"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)


def check(recipe: dict[str, Any], **overrides: Any) -> None:
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    evolution = {"recipe": ["own.yaml"], "overrides": overrides}
    axolotl_recipes.check({"evolutions": {"e": evolution}}, PROJECT, KeyOrigins([]))


@pytest.mark.parametrize(
    "recipe",
    [
        {"learning_rate": 1e-4, "adapter": None},
        {"datasets": [{"type": {"field_instruction": "a"}, "path": "rows.jsonl"}]},
        {"datasets": [{"path": "json", "data_files": ["rows.jsonl"], "type": "alpaca"}]},
        {"fsdp_config": {"fsdp_offload_params": False, "auto_wrap_policy": "X"}},
        {"plugins": [LIGER], "liger_rope": True},
        {"plugins": ["liger.LigerPlugin"], "liger_rope": True},
        {"plugins": ["mine.Plugin"], "key_of_mine": True},
        {"wandb_project": "p", "wandb_mode": "offline"},
        {"overrides_of_model_config": {"any": 1}},
    ],
)
def test_recipes_that_are_accepted(recipe: dict[str, Any]) -> None:
    check(recipe)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"lerning_rate": 1}, "own.yaml: lerning_rate is no key of Axolotl .*: learning_rate$"),
        (
            {"datasets": [{"typ": "alpaca"}]},
            "own.yaml: datasets: typ is no key of Axolotl .*; nearest: type$",
        ),
        ({"fsdp_config": {"offload": 1}}, "fsdp_config: offload is no key of Axolotl"),
        ({"liger_rope": True}, f"liger_rope belongs to {LIGER}, which `plugins` does not list"),
        (
            {"datasets": [{"path": "owner/name"}]},
            "own.yaml: datasets: no such file: owner/name; training jobs have no network: name a",
        ),
        ({"test_datasets": [{"path": "https://host/x.jsonl"}]}, "no such file: https://host"),
        ({"pretraining_dataset": "owner/name"}, "pretraining_dataset: no such file: owner/name"),
        ({"wandb_project": "p"}, "wandb_project: training jobs have no network; set wandb_mode"),
        ({"hub_model_id": "o/n"}, "hub_model_id: training jobs have no network; set hub_model_id"),
        ({"use_mlflow": True}, "needs the package mlflow, which envs/train.txt does not install"),
        ({"deepspeed": "zero3.json"}, "the package deepspeed, .* or shard with fsdp_config"),
        ({"optimizer": "came_pytorch"}, "the package came-pytorch, "),
    ],
)
def test_recipes_that_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(recipe)


def test_overrides_are_checked_and_win() -> None:
    with pytest.raises(InputError, match=r"evolutions\.e\.overrides: lora_rank is no key"):
        check({}, lora_rank=8)
    check({"wandb_project": "p"}, wandb_project=None)
