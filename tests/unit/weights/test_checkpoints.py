"""Checkpoints: what an opened one answers, from files that are read once."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from portllm.errors import InputError
from portllm.weights import checkpoints
from portllm.weights.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "model"
    return tiny.save_model(directory, model_type="gemma2", max_shard_size="10KB")


def test_weights_are_those_of_transformers(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    expected = AutoModelForCausalLM.from_pretrained(model).state_dict()
    # Tied to the embedding, so it is not stored.
    expected.pop("lm_head.weight")
    assert checkpoint.tied_embedding == "model.embed_tokens.weight"
    assert checkpoint.architecture == "Gemma2ForCausalLM"
    assert checkpoint.shapes == {name: tuple(value.shape) for name, value in expected.items()}
    for name, tensor in checkpoint.tensors():
        assert torch.equal(tensor, expected[name])


def test_places_in_the_file_are_those_of_the_tensors(model: Path) -> None:
    for shard in Checkpoint(model).shards:
        content = shard.path.read_bytes()
        with safe_open(shard.path, "pt") as file:
            for tensor in shard.tensors:
                expected = file.get_tensor(tensor.name).numpy().tobytes()
                assert content[tensor.begin : tensor.end] == expected
        assert content.startswith(shard.header)
        assert len(content) == shard.size


def test_an_opened_checkpoint_reads_no_file_again(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "model")
    checkpoint = Checkpoint.open(directory)
    answers = (
        checkpoint.shapes,
        checkpoint.architecture,
        checkpoint.tokenizer_hash,
        checkpoint.tied_embedding,
        checkpoint.index,
    )
    shutil.rmtree(directory)
    assert answers == (
        checkpoint.shapes,
        checkpoint.architecture,
        checkpoint.tokenizer_hash,
        checkpoint.tied_embedding,
        checkpoint.index,
    )


def test_the_tokenizers_hash_is_that_of_its_vocabulary(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "model")
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "truncation": {"max_length": 7}}))
    assert Checkpoint(directory).tokenizer_hash == Checkpoint(model).tokenizer_hash
    content["model"]["vocab"]["another token"] = 10_000
    path.write_text(json.dumps(content))
    assert Checkpoint(directory).tokenizer_hash != Checkpoint(model).tokenizer_hash
    path.unlink()
    assert Checkpoint(directory).tokenizer_hash is None


def test_a_directory_that_is_no_model_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--base: .*absent"):
        Checkpoint.open(tmp_path / "absent", "--base")
    with pytest.raises(InputError, match=r"config\.json"):
        Checkpoint.open(tmp_path)
    shutil.copyfile(model / checkpoints.CONFIG, tmp_path / checkpoints.CONFIG)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        Checkpoint.open(tmp_path)
