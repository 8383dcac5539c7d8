"""Reading YAML files of a study: layered recipes, and errors that name the file."""

from pathlib import Path

import pytest

from portllm.errors import InputError
from portllm.study.yaml_files import read_recipe


def test_a_recipe_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("- a\n- list\n")
    with pytest.raises(InputError, match=r"recipe\.yaml: expected a mapping"):
        read_recipe([path])


def test_later_recipes_override_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text("datasets: [{type: alpaca}]\nsequence_len: 64\n")
    (tmp_path / "training.yaml").write_text("sequence_len: 128\nadapter: lora\n")
    recipe = read_recipe([tmp_path / "corpus.yaml", tmp_path / "training.yaml"])
    assert recipe == {"datasets": [{"type": "alpaca"}], "sequence_len": 128, "adapter": "lora"}
