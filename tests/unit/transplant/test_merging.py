"""Merging: checked against float64 and PEFT, and killed at any byte."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
import torch
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from portllm.errors import InputError
from portllm.storage import files
from portllm.transplant import blocks, direct_io, edits, merging
from portllm.weights import adapters, checkpoints, fit
from portllm.weights.adapters import Adapter, StoredAdapter
from portllm.weights.checkpoints import Checkpoint
from portllm.weights.safetensors_file import SafetensorsFile

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FLOAT32_ROUNDOFF = 2.0**-24


def write_checkpoint(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> Path:
    """Write a checkpoint of arbitrary tensors over several shards, with metadata."""
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["AnyModel"]}')
    names = list(tensors)
    weight_map = {}
    for index in range(shards):
        chosen = names[index::shards]
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        weight_map.update(dict.fromkeys(chosen, name))
        parts = {name: tensors[name] for name in chosen}
        save_file(parts, directory / name, metadata={"format": "pt", "note": str(index)})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / checkpoints.INDEX).write_text(json.dumps(index))
    return directory


def random_adapter(
    generator: torch.Generator, shapes: dict[str, tuple[int, int]], rank: int, alpha: float
) -> Adapter:
    factors = {}
    for name, (rows, columns) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        factors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return Adapter({"lora_alpha": alpha}, {name: value.numpy() for name, value in factors.items()})


def exact_change(adapter: Adapter, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Δ in float64, and the sum of the magnitudes of its terms."""
    delta = edits.deltas_of(adapter)[name]
    b, a = torch.from_numpy(delta.b).double(), torch.from_numpy(delta.a).double()
    return delta.factor * (b @ a), abs(delta.factor) * (b.abs() @ a.abs())


def steps_apart(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Count the representable numbers between the elements of two tensors."""
    integers = {2: torch.int16, 4: torch.int32}[found.dtype.itemsize]
    lowest = torch.iinfo(integers).min

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(integers).long()
        return torch.where(bits < 0, lowest - bits, bits)

    return (ordered(found) - ordered(wanted)).abs()


def merged(model: Path, directory: Path, changes: edits.Edits, **options: Any) -> dict:
    directory.mkdir()
    merging.merge_many(Checkpoint(model), {directory: changes}, **options)
    return dict(Checkpoint(directory).tensors())


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
    rank=st.integers(1, 6),
    alpha=st.floats(0.01, 16),
    shards=st.integers(1, 3),
    block=st.integers(1, 300),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_sums_are_within_one_step_of_float64_then_round(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: torch.dtype,
    sizes: list[tuple[int, int]],
    rank: int,
    alpha: float,
    shards: int,
    block: int,
    threads: int,
    seed: int,
) -> None:
    directory = tmp_path_factory.mktemp("case")
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"layer{index}.weight": shape for index, shape in enumerate(sizes)}
    weights = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    untouched = {"norm.weight": torch.randn(7, generator=generator).to(dtype)}
    model = write_checkpoint(
        directory / "model", {**weights, **untouched}, min(shards, len(shapes) + 1)
    )
    adapter = random_adapter(generator, shapes, rank, alpha)
    with pytest.MonkeyPatch.context() as patch:
        # Blocks and pieces that no weight's size is a multiple of.
        patch.setattr(blocks, "BLOCK", block)
        patch.setattr(blocks, "PIECE", max(1, block // 7))
        result = merged(model, directory / "merged", edits.edits_of(adapter), threads=threads)
    assert result.keys() == weights.keys() | untouched.keys()
    assert torch.equal(result["norm.weight"], untouched["norm.weight"])
    for name, weight in weights.items():
        change, terms = exact_change(adapter, name)
        exact = weight.double() + change
        magnitude = weight.double().abs() + terms
        assert result[name].dtype == dtype
        apart = steps_apart(result[name], exact.to(dtype))
        # In 16 bits the sum is made in float32. Where its terms cancel each other to a thousandth,
        # what float32 loses (Higham 2002, 3.1) may be more than a step of so small a number.
        cancelled = exact.abs() < magnitude / 512
        assert (apart[~cancelled] <= 1).all()
        if dtype == torch.float32:
            assert (apart <= 1).all()
        lost = (rank + 3) * FLOAT32_ROUNDOFF * magnitude
        step = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
        assert ((result[name].double() - exact).abs() <= step + lost).all()
    shutil.rmtree(directory)


PEFT_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 4},
    "patterns": {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"down_proj": 5}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "output layer": {"target_modules": ["q_proj", "lm_head"]},
    "one layer": {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    "dora": {"use_dora": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}


def gap(model: Path, adapter: Path, merged: Path, dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest difference of merged and attached logits, and their magnitude."""
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        attached = PeftModel.from_pretrained(base, adapter)(tokens).logits.float()
        result = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype)(tokens).logits.float()
    return (result - attached).abs().max().item(), attached.abs().max().item()


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
@pytest.mark.parametrize("options", PEFT_OPTIONS.values(), ids=PEFT_OPTIONS)
@pytest.mark.filterwarnings("ignore:Model .*tie")
def test_merging_equals_peft_in_float32(tmp_path: Path, model_type: str, options: dict) -> None:
    model = tiny.save_model(tmp_path / "model", model_type=model_type, max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, **options)
    directory = tmp_path / "merged"
    fit.check(StoredAdapter(adapter), Checkpoint(model))
    directory.mkdir()
    merging.merge(Checkpoint(model), adapters.load(adapter), directory)
    difference, size = gap(model, adapter, directory, torch.float32)
    assert difference < 1e-5 * size

    loaded = AutoModelForCausalLM.from_pretrained(model)
    tied = loaded.config.tie_word_embeddings
    original = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    expected = PeftModel.from_pretrained(loaded, adapter).merge_and_unload().state_dict()
    result = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    changed = [name for name in expected if not torch.equal(expected[name], original[name])]
    assert changed
    assert result.keys() == expected.keys()
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, tensor in expected.items():
        # PEFT merges into both ends of a tied pair what its attached adapter does to one.
        if not (tied and name in ends and ends & set(changed)):
            torch.testing.assert_close(result[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_transposed_weights_equal_peft(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", model_type="gpt2")
    for name, options in {"plain": {}, "dora": {"use_dora": True}}.items():
        adapter = tiny.save_adapter(tmp_path / name, model, **options)
        assert json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"]
        fit.check(StoredAdapter(adapter), Checkpoint(model))
        directory = tmp_path / f"{name}-merged"
        directory.mkdir()
        merging.merge(Checkpoint(model), adapters.load(adapter), directory)
        difference, size = gap(model, adapter, directory, torch.float32)
        assert difference < 1e-5 * size
        before, after = (
            AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (model, directory)
        )
        assert not torch.equal(
            before["transformer.h.0.mlp.c_fc.weight"], after["transformer.h.0.mlp.c_fc.weight"]
        )


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.06)]
)
def test_merged_logits_are_close_to_attached_ones(
    tmp_path: Path, dtype: torch.dtype, most: float
) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=dtype)
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    directory = tmp_path / "merged"
    directory.mkdir()
    merging.merge(Checkpoint(model), adapters.load(adapter), directory)
    difference, size = gap(model, adapter, directory, dtype)
    assert difference < most * size
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    with torch.inference_mode():
        logits = plain(torch.arange(3, 40)[None]).logits.float()
        patched = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        change = (patched(torch.arange(3, 40)[None]).logits.float() - logits).abs().max().item()
    assert difference < change / 3


def test_shards_headers_and_other_weights_are_kept(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16, max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, target_modules=["q_proj"])
    result = merged(model, tmp_path / "merged", edits.edits_of(adapters.load(adapter)))
    assert len(Checkpoint(model).shard_paths) > 1
    for before, after in zip(
        Checkpoint(model).shard_paths, Checkpoint(tmp_path / "merged").shard_paths, strict=True
    ):
        assert before.name == after.name
        assert before.stat().st_size == after.stat().st_size
        with safe_open(before, "pt") as one, safe_open(after, "pt") as other:
            assert one.metadata() == other.metadata() == {"format": "pt"}
            assert list(one.offset_keys()) == list(other.offset_keys())
    original = dict(Checkpoint(model).tensors())
    assert original.keys() == result.keys()
    for name, tensor in result.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, original[name]) == ("q_proj" not in name), name
    index = (tmp_path / "merged" / checkpoints.INDEX).read_bytes()
    assert index == (model / checkpoints.INDEX).read_bytes()


def test_recorded_hashes_equal_those_of_the_files(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    adapter = adapters.load(tiny.save_adapter(tmp_path / "adapter", model))
    directory = tmp_path / "merged"
    directory.mkdir()
    changes = edits.edits_of(adapter)
    written = merging.merge_many(Checkpoint(model), {directory: changes}, source_hashed=True)
    shards = {path.name: files.hash_file(path) for path in Checkpoint(directory).shard_paths}
    assert written.content == {directory: shards}
    assert written.source == {
        path.name: files.hash_file(path) for path in Checkpoint(model).shard_paths
    }


def test_untying_the_output_layer_updates_index_and_config(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", model_type="gemma2", max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, target_modules=["lm_head"])
    result = merged(
        model, tmp_path / "merged", edits.edits_of(adapters.load(adapter)), source_hashed=True
    )
    before = dict(Checkpoint(model).tensors())
    embedding = "model.embed_tokens.weight"
    assert result.keys() - before.keys() == {"lm_head.weight"}
    assert torch.equal(result[embedding], before[embedding])
    assert not torch.equal(result["lm_head.weight"], before[embedding])
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    index = json.loads((tmp_path / "merged" / checkpoints.INDEX).read_text())
    was = json.loads((model / checkpoints.INDEX).read_text())
    with safe_open(tmp_path / "merged" / index["weight_map"]["lm_head.weight"], "pt") as shard:
        assert "lm_head.weight" in shard.keys()  # noqa: SIM118
    assert index["metadata"]["total_size"] > was["metadata"]["total_size"]


def test_several_patches_in_one_pass(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16, max_shard_size="10KB")
    first, second = (
        adapters.load(tiny.save_adapter(tmp_path / f"a{seed}", model, seed=seed, **options))
        for seed, options in ((1, {}), (2, {"r": 3, "target_modules": ["q_proj", "embed_tokens"]}))
    )
    alone = {
        directory: edits.edits_of(adapter)
        for directory, adapter in ((tmp_path / "one", first), (tmp_path / "two", second))
    }
    together = {tmp_path / "both-one": alone[tmp_path / "one"]}
    together[tmp_path / "both-two"] = alone[tmp_path / "two"]
    for directory in together:
        directory.mkdir()
    written = merging.merge_many(Checkpoint(model), together)
    assert len(written.content) == 2
    for directory, changes in alone.items():
        merged(model, directory, changes)
        for shard in Checkpoint(directory).shard_paths:
            same = tmp_path / f"both-{directory.name}" / shard.name
            assert shard.read_bytes() == same.read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_shard_is_read_once_for_several_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16, max_shard_size="10KB")
    targets = ("all-linear", ["q_proj"], ["embed_tokens", "o_proj"])
    changes = {}
    for seed, modules in enumerate(targets):
        adapter = tiny.save_adapter(tmp_path / f"a{seed}", model, seed=seed, target_modules=modules)
        (directory := tmp_path / f"merged{seed}").mkdir()
        changes[directory] = edits.edits_of(adapters.load(adapter))
    read: list[tuple[str, int, int]] = []
    real = blocks.read_into

    def count(file: int, buffer: memoryview, offset: int) -> None:
        read.append((Path(f"/proc/self/fd/{file}").readlink().name, offset, len(buffer)))
        real(file, buffer, offset)

    monkeypatch.setattr(blocks, "read_into", count)
    monkeypatch.setattr(blocks, "BLOCK", 700)
    merging.merge_many(Checkpoint(model), changes, threads=threads)
    shards = Checkpoint(model).shard_paths
    assert len(shards) > 1
    for shard in shards:
        parts = sorted((offset, size) for name, offset, size in read if name == shard.name)
        place = len(SafetensorsFile.open(shard).header)
        for offset, size in parts:
            assert offset == place, "every byte once, and none left out"
            place += size
        assert place == shard.stat().st_size
        for directory in changes:
            assert (directory / shard.name).stat().st_size == shard.stat().st_size


def peak_of_merging(directory: Path, matrices: int) -> int:
    """Return the peak memory of merging into a model with `count` matrices of 8 MiB."""
    shape = (2048, 2048)
    names = [f"layers.{index}.proj.weight" for index in range(matrices)]
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name in names}
    model = write_checkpoint(directory / "model", weights, 1)
    patch = random_adapter(torch.Generator().manual_seed(0), dict.fromkeys(names, shape), 4, 8)
    (directory / "patch").mkdir()
    config = {"peft_type": "LORA", "r": 4, **patch.config}
    adapters.save(Adapter(config, patch.tensors), directory / "patch", base=model)
    program = PROJECT / "workflow_scripts" / "transplant.py"
    command = [PROJECT / ".venvs/eval/bin/python", program, "--threads", "2", "--version", model]
    command += ["--patch", directory / "patch", "--merged", directory / "merged"]
    # From a shell: a process's peak begins with that of the one which it is forked from, and this
    # one is large.
    shell = ["sh", "-c", '"$@"; exit $?', "sh", *map(str, command)]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = dict(Checkpoint(directory / "merged").tensors())
    assert all(weight.any() for weight in changed.values())
    return files.read_json(directory / "merged" / "manifest.json")["cost"]["peak_host_bytes"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = {}
    for matrices in (4, 32):
        (tmp_path / str(matrices)).mkdir()
        peaks[matrices] = peak_of_merging(tmp_path / str(matrices), matrices)
        shutil.rmtree(tmp_path / str(matrices))
    # The models' sizes differ by 235 MB.
    assert peaks[32] - peaks[4] < 40e6


def test_a_weighted_sum(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    patches = [
        (adapters.load(tiny.save_adapter(tmp_path / f"a{seed}", model, seed=seed, r=seed)), weight)
        for seed, weight in ((1, 0.7), (2, -0.3))
    ]
    result = merged(model, tmp_path / "merged", edits.weighted_sum(patches))
    checked = 0
    for name, weight in Checkpoint(model).tensors():
        exact = weight.double()
        for adapter, factor in patches:
            if name in edits.deltas_of(adapter):
                exact = exact + factor * exact_change(adapter, name)[0]
                checked += 1
        torch.testing.assert_close(result[name], exact.float(), rtol=1e-6, atol=1e-8)
    assert checked == 28


@settings(max_examples=30, deadline=None)
@given(dtype=st.sampled_from(DTYPES), size=st.floats(1e-3, 10), seed=st.integers(0, 2**31))
def test_unmerging_restores_weights_within_its_error_bound(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, size: float, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("case")
    generator = torch.Generator().manual_seed(seed)
    name = "layer.weight"
    weight = torch.randn(9, 5, generator=generator).to(dtype)
    model = write_checkpoint(directory / "model", {name: weight}, 1)
    adapter = random_adapter(generator, {name: (9, 5)}, 3, size)
    there = merged(model, directory / "there", edits.edits_of(adapter))[name]
    taken_back = edits.edits_of(adapter, weight=-1.0)
    back = merged(directory / "there", directory / "back", taken_back)[name]
    # Half a step of the sum, half a step of what comes back, and what two sums lose in float32.
    roundoff = torch.finfo(dtype).eps / 2
    lost = 2 * 6 * FLOAT32_ROUNDOFF * (there.double().abs() + exact_change(adapter, name)[1])
    bound = roundoff * (there.double().abs() + back.double().abs()) + lost
    bound += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((back.double() - weight.double()).abs() <= bound).all()
    shutil.rmtree(directory)


def test_only_additive_patches_can_be_unmerged(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    for options in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}):
        adapter = tiny.save_adapter(tmp_path / "adapter", model, **options)
        with pytest.raises(InputError, match="expected an additive patch"):
            edits.edits_of(adapters.load(adapter), weight=-1.0)


def test_weights_of_a_loaded_model_are_restored_bit_for_bit(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16)
    changes = edits.edits_of(adapters.load(tiny.save_adapter(tmp_path / "adapter", model)))
    expected = merged(model, tmp_path / "merged", changes)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weights = dict(loaded.named_parameters())
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with merging.applied(weights, changes):
        for name, tensor in weights.items():
            assert torch.equal(tensor, expected[name]), name
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())
    with pytest.raises(ZeroDivisionError), merging.applied(weights, changes):
        _ = 1 / 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_a_float16_overflow_is_an_error(tmp_path: Path) -> None:
    name = "layer.weight"
    model = write_checkpoint(tmp_path / "model", {name: torch.ones(4, 4).half()}, 1)
    adapter = random_adapter(torch.Generator().manual_seed(0), {name: (4, 4)}, 2, 1e6)
    with pytest.raises(InputError, match=r"layer\.weight: the sum .* too large for float16"):
        merged(model, tmp_path / "merged", edits.edits_of(adapter))
    loaded = {name: torch.ones(4, 4).half()}
    applied = merging.applied(loaded, edits.edits_of(adapter))
    with pytest.raises(InputError, match=r"layer\.weight: the sum .* is NaN or inf"), applied:
        pytest.fail("the sum is used")
    assert torch.equal(loaded[name], torch.ones(4, 4).half())


def test_incompatible_patches_are_errors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "layer.weight"
    whole = write_checkpoint(tmp_path / "ints", {name: torch.ones(4, 4).to(torch.int8)}, 1)
    adapter = random_adapter(generator, {name: (4, 4)}, 2, 1)
    with pytest.raises(InputError, match=r"layer\.weight is stored as I8; a patch can be added"):
        merged(whole, tmp_path / "one", edits.edits_of(adapter))
    other = random_adapter(generator, {"lair.weight": (4, 4)}, 2, 1)
    with pytest.raises(InputError, match=r"has no weight lair\.weight; nearest: layer\.weight"):
        merged(whole, tmp_path / "two", edits.edits_of(other))
    adapter.tensors["base_model.model.layer.lora_A.weight"][0, 0] = numpy.nan
    with pytest.raises(InputError, match=r"lora_A\.weight: found NaN or infinity"):
        edits.edits_of(adapter)


def test_too_little_disk_space_is_an_error_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save_model(tmp_path / "model")
    changes = edits.edits_of(adapters.load(tiny.save_adapter(tmp_path / "adapter", model)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with (
        pytest.raises(
            InputError, match=r"too little disk space .*: found 0\.00 GB free, expected 0\.02 GB"
        ),
        files.whole_directory(tmp_path / "merged") as directory,
    ):
        merging.merge_many(Checkpoint(model), {directory: changes})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_a_disk_that_fills_up_leaves_no_partial_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    changes = edits.edits_of(adapters.load(tiny.save_adapter(tmp_path / "adapter", model)))
    real, calls = os.pwrite, []

    def fill(file: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, content, offset)

    monkeypatch.setattr(os, "pwrite", fill)
    with (
        pytest.raises(InputError, match=r"No space left on device while writing the weights"),
        files.whole_directory(tmp_path / "merged") as directory,
    ):
        merging.merge_many(Checkpoint(model), {directory: changes})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def _merge_until(byte: int, model: Path, adapter: Path, target: Path) -> None:
    """Merge in this process and kill it after a number of written bytes."""
    real, left = os.pwrite, [byte]

    def write(file: int, content: memoryview, offset: int) -> int:
        if len(content) < left[0]:
            left[0] -= len(content)
            return real(file, content, offset)
        real(file, content[: left[0]], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    os.pwrite = write
    direct_io.DIRECT = 0  # Direct writes end with a page.
    with files.whole_directory(target) as directory:
        changes = edits.edits_of(adapters.load(adapter))
        merging.merge_many(Checkpoint(model), {directory: changes}, threads=1)


def test_a_merge_killed_at_any_byte_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    results = tmp_path / "results"
    results.mkdir()
    total = sum(shard.stat().st_size for shard in Checkpoint(model).shard_paths)
    context = multiprocessing.get_context("fork")
    generator = numpy.random.default_rng(0)
    for byte in (1, total - 1, *generator.integers(2, total - 1, 8)):
        arguments = (int(byte), model, adapter, results / "merged")
        process = context.Process(target=_merge_until, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not (results / "merged").exists()
        for left in results.iterdir():
            with pytest.raises(InputError):
                checkpoints.check_directory(left, "left")
    with files.whole_directory(results / "merged") as directory:
        merging.merge(Checkpoint(model), adapters.load(adapter), directory)
    assert [path.name for path in results.iterdir()] == ["merged"]
    AutoModelForCausalLM.from_pretrained(results / "merged")


def test_a_truncated_shard_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for length in (4, 100, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model.safetensors: truncated"):
            _ = Checkpoint(model).shapes


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB")
    gone = Checkpoint(model).shard_paths[1]
    shutil.move(gone, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{gone.name}.* is missing"):
        _ = Checkpoint(model).shapes
