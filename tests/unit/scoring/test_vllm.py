"""Scoring with vLLM: lm-eval's model class is real, the engine is a stand-in."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import vllm_stand_in
from conftest import PROJECT

from portllm.data import tasks
from portllm.errors import InputError
from portllm.scoring import hf, vllm
from portllm.scoring.cache import ScoringSettings
from portllm.scoring.ties import TIED

SETTINGS = ScoringSettings(limit=8, batch_size=4, dtype="bfloat16", backend="vllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(
        tmp_path_factory.mktemp("model") / "float32", max_position_embeddings=512
    )


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [tiny.save_adapter(folder / str(seed), model, seed=seed, r=9) for seed in (1, 2)]


def with_config(adapter: Path, folder: Path, **config: Any) -> Path:
    """Copy an adapter and change keys of its configuration."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").hardlink_to(adapter / "adapter_model.safetensors")
    old = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**old, **config}))
    return folder


def test_engine_arguments(model: Path, adapters: list[Path]) -> None:
    assert vllm.engine(model, SETTINGS, adapters, 2) == {
        "pretrained": str(model),
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "batch_size": "auto",
        "max_batch_size": 4,
        "max_length": None,
        "lora_local_path": str(adapters[0]),
        "max_lora_rank": 16,
    }


def test_an_un_patched_version_may_be_float32(model: Path) -> None:
    arguments = vllm.engine(model, ScoringSettings(max_length=64), [], 1)
    # vLLM's own "auto" would mean 16 bits.
    assert arguments["dtype"] == "float32"
    assert arguments["lora_local_path"] is None
    assert arguments["max_length"] == 64


def test_the_dtype_is_read_from_the_weights_if_the_config_has_none(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", dtype=torch.bfloat16)
    config = json.loads((model / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    (model / "config.json").write_text(json.dumps(config))
    assert vllm.dtype_of(model, "auto") == "bfloat16"
    assert vllm.dtype_of(model, "float16") == "float16"


@pytest.mark.parametrize(("rank", "reserved"), [(1, 1), (2, 8), (8, 8), (65, 128), (512, 512)])
def test_the_reserved_rank_fits_every_adapter(
    adapters: list[Path], tmp_path: Path, rank: int, reserved: int
) -> None:
    adapter = with_config(adapters[0], tmp_path / "a", r=rank)
    assert vllm.rank_to_reserve([adapter]) == reserved


def test_a_port_that_is_not_an_adapter_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "transplant.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"vLLM attaches adapters, but .* set scoring\.backend: hf"
    ):
        vllm.engine(model, SETTINGS, [tmp_path], 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 513}, ["rank 513", "rank 512 at most", "scoring.backend: hf"]),
        ({"rank_pattern": {"q_proj": 4}}, ["rank_pattern is set, which vLLM ignores"]),
        ({"alpha_pattern": {"q_proj": 4}}, ["alpha_pattern is set, which vLLM ignores"]),
        ({"use_dora": True}, ["use_dora is set, which vLLM cannot attach"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save is set, which vLLM cannot attach"]),
        ({"peft_type": "LOHA"}, ["found peft_type 'LOHA', expected LORA"]),
    ],
)
def test_an_adapter_that_vllm_would_not_apply_correctly_is_an_error(
    model: Path, adapters: list[Path], tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    adapter = with_config(adapters[0], tmp_path / "a", **config)
    with pytest.raises(InputError) as caught:
        vllm.engine(model, SETTINGS, [adapters[1], adapter], 1)
    for word in [str(adapter / "adapter_config.json"), *words]:
        assert word in str(caught.value)


def test_float32_with_patches_is_an_error(model: Path, adapters: list[Path]) -> None:
    with pytest.raises(InputError, match=r"in float32; set scoring\.dtype: bfloat16"):
        vllm.engine(model, ScoringSettings(), adapters, 1)


def test_no_gpu_and_a_number_that_does_not_divide_the_heads_are_errors(model: Path) -> None:
    with pytest.raises(InputError, match="needs a GPU; found none"):
        vllm.engine(model, SETTINGS, [], 0)
    with pytest.raises(InputError, match="has 2, which is not a multiple of the job's 3 GPUs"):
        vllm.engine(model, SETTINGS, [], 3)


def test_samples_equal_those_of_transformers(
    model: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = vllm_stand_in.install(monkeypatch)
    task = tasks.load("demo_yes_no", include=str(PROJECT / "resources" / "demo"))
    scorer = vllm.VllmScorer(model, SETTINGS, adapters, gpus=1)
    reference = hf.HfScorer(model, SETTINGS)
    order = [None, adapters[1], adapters[0], None]
    results = [scorer.score(task, adapter) for adapter in order]
    for adapter, result in zip(order, results, strict=True):
        expected = reference.score(task, adapter)
        assert result.metrics.keys() == expected.metrics.keys()
        assert len(result.samples) == len(expected.samples) == 8
        for sample, expected_sample in zip(result.samples, expected.samples, strict=True):
            # In bfloat16 the two backends round differently, so that other choices are ties.
            assert sample.keys() - {TIED} == expected_sample.keys() - {TIED}
            for name in ("doc_id", "filter", "target", "doc_hash", "prompt_hash"):
                assert sample[name] == expected_sample[name]
            values, expected_values = (
                [float(choice[0][0]) for choice in one["resps"]]
                for one in (sample, expected_sample)
            )
            # bfloat16 has about three digits.
            assert values == pytest.approx(expected_values, rel=0.02)
    # Each patch changes the scores, and the un-patched version scores the same again.
    assert results[0].samples == results[3].samples
    assert results[0].samples != results[1].samples != results[2].samples
    (engine,) = engines
    assert engine.arguments["max_num_seqs"] == 4
    assert engine.arguments["max_lora_rank"] == 16
    attached = [request and request.lora_int_id for request in engine.requests]
    assert attached == [None, 2, 1, None]
    assert scorer.finish() == {"device": "cpu", "devices": 1, "peak_device_bytes": []}
