"""Merging: against float64, and against PEFT."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from portllm import adapters, checkpoints, merging
from portllm.errors import InputError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 6),
    factor=st.floats(-4, 4),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sum_is_within_one_step_of_float64(
    dtype: torch.dtype,
    rows: int,
    columns: int,
    rank: int,
    factor: float,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    out, inner = (columns, rows) if transposed else (rows, columns)
    a = torch.randn(rank, inner, generator=generator)
    b = torch.randn(out, rank, generator=generator)
    merged = merging.add_delta(weight, merging.Delta(a.numpy(), b.numpy(), factor, transposed))
    product = factor * (b.double() @ a.double())
    exact = weight.double() + (product.T if transposed else product)
    assert merged.dtype == dtype
    # One step of the dtype, plus what a sum of rank + 2 terms can lose in float32 (Higham 2002).
    step = torch.finfo(dtype).eps * exact.abs()
    terms = abs(factor) * (b.double().abs() @ a.double().abs())
    magnitude = weight.double().abs() + (terms.T if transposed else terms)
    lost = (rank + 3) * torch.finfo(torch.float32).eps * magnitude
    assert ((merged.double() - exact).abs() <= step + lost).all()


@pytest.mark.parametrize("model_type", ["mistral", "llama", "gemma2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 4},
        {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"down_proj": 5}},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "embedding", "one layer"],
)
def test_equals_peft_in_float32(tmp_path: Path, model_type: str, options: dict) -> None:
    model = tiny.save_model(tmp_path / "model", model_type=model_type, max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, **options)
    merged = tmp_path / "merged"
    merged.mkdir()
    adapters.check_fit(adapter, model)
    merging.merge(model, adapters.load(adapter), merged)

    loaded = AutoModelForCausalLM.from_pretrained(model)
    original = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    expected = PeftModel.from_pretrained(loaded, adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    changed = [name for name in expected if not torch.equal(expected[name], original[name])]
    assert changed
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_keeps_shards_dtype_and_untouched_weights(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16, max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, target_modules=["q_proj"])
    merged = tmp_path / "merged"
    merged.mkdir()
    merging.merge(model, adapters.load(adapter), merged)
    assert len(checkpoints.shards(model)) > 1
    before, after = dict(checkpoints.tensors(model)), dict(checkpoints.tensors(merged))
    assert [path.name for path in checkpoints.shards(merged)] == [
        path.name for path in checkpoints.shards(model)
    ]
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]) == ("q_proj" not in name), name


def test_a_cut_off_shard_is_named(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for length in (4, 100, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model.safetensors: cut off"):
            checkpoints.shapes(model)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    gone = checkpoints.shards(model)[1]
    shutil.move(gone, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{gone.name}.* is missing"):
        checkpoints.shapes(model)
