"""Models and patches with numbers that are not finite get no score."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import PROJECT
from safetensors.torch import load_file, save_file

import score as program
from portllm.data import tasks
from portllm.errors import InputError
from portllm.scoring import cache, hf, validity, vllm
from portllm.scoring.cache import ScoringSettings
from portllm.storage import files, manifests
from portllm.weights import module_patterns

SETTINGS = ScoringSettings(limit=4, batch_size=4)
UN_PATCHED = {"trained_on": "none", "method": "none", "seed": None}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model", max_position_embeddings=512)


def task(name: str) -> Any:
    return tasks.load(name, include=str(PROJECT / "resources" / "demo"))


def overflowing(directory: Path, model: Path) -> Path:
    """Write an adapter of finite factors whose product is infinite."""
    path = tiny.save_adapter(directory, model) / "adapter_model.safetensors"
    tensors = {name: torch.full_like(tensor, 1e30) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_version_that_is_not_finite_is_not_loaded(model: Path, value: float) -> None:
    name = tiny.spoil(model, value)
    message = rf"^1 of 21 weights of .*/model.* are not finite \(first: {name}\); fetch or train"
    with pytest.raises(InputError, match=message):
        hf.HfScorer(model, SETTINGS)
    with pytest.raises(InputError, match=message):
        vllm.VllmScorer(model, SETTINGS, [], gpus=1)


def test_a_patch_that_is_not_finite_is_not_attached(tmp_path: Path, model: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "patch", model)
    before = hf.HfScorer(model, SETTINGS).score(task("demo_yes_no"), adapter)
    assert before.samples
    name = tiny.spoil(adapter)
    message = rf"^1 of 28 tensors of the patch .*/patch are not finite \(first: {name}\); train it"
    with pytest.raises(InputError, match=message):
        hf.HfScorer(model, SETTINGS).score(task("demo_yes_no"), adapter)
    settings = ScoringSettings(dtype="bfloat16", backend="vllm")
    with pytest.raises(InputError, match=message):
        vllm.VllmScorer(model, settings, [adapter], gpus=1)


def test_a_scale_that_is_not_finite_is_not_attached(tmp_path: Path, model: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "patch", model)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": math.inf}))
    message = r"adapter_config\.json: lora_alpha: found inf, expected a finite number"
    scorer = hf.HfScorer(model, SETTINGS)
    with pytest.raises(InputError, match=message):
        scorer.score(task("demo_yes_no"), adapter)
    assert not any("lora" in name for name, _ in scorer._model.named_modules())


def test_what_the_libraries_refuse_is_an_error_of_one_line(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_patterns, "CPU_SECONDS", 0.1)
    scorer = hf.HfScorer(model, SETTINGS)
    adapter = tiny.save_adapter(tmp_path / "patch", model)
    config = adapter / "adapter_config.json"
    original = json.loads(config.read_text())
    for change, message in (
        # This name of a module has no weight, so that only PEFT matches it.
        ({"target_modules": "(?=.*act_fn)(.|.)*!"}, "target_modules: found .* quick to match"),
        ({"target_modules": "absent"}, "cannot attach this adapter: ValueError: Target modules"),
        ({"init_lora_weights": "x"}, "cannot attach this adapter: ValueError: Unknown"),
    ):
        config.write_text(json.dumps({**original, **change}))
        with pytest.raises(InputError, match=message):
            scorer.score(task("demo_yes_no"), adapter)
    config.write_text(json.dumps({**original, "r": 2**31}))
    with pytest.raises(InputError, match="found rank 2, expected 2147483648"):
        scorer.score(task("demo_yes_no"), adapter)
    config = model / "config.json"
    original = config.read_text()
    config.write_text(json.dumps({**json.loads(original), "num_hidden_layers": 10**9}))
    with pytest.raises(InputError, match="num_hidden_layers: found 1000000000, expected"):
        hf.HfScorer(model, SETTINGS)
    config.write_text(original)
    (model / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(InputError, match=r"/model: cannot load this version: "):
        hf.HfScorer(model, SETTINGS)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("demo_yes_no", r"8 of 8 log-likelihoods are not finite \(first: nan, document 0\)"),
        ("demo_arithmetic", "logits are NaN while text is generated"),
    ],
)
def test_an_overflow_names_the_cell(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    adapter = overflowing(tmp_path / "patch", model)
    names = {"trained_on": "base", "method": "direct", "seed": 1}
    cells = [
        program.RequestedCell(UN_PATCHED, None, None, "a"),
        program.RequestedCell(names, adapter, "content", "b"),
    ]
    monkeypatch.setattr(program, "load_task", lambda _: task(name))
    arguments = argparse.Namespace(
        version=model, lm_eval=name, names=[("model", "m"), ("applied_to", "v2"), ("task", name)]
    )
    assert list(program.score(arguments, SETTINGS, cells[:1], 0).cells) == ["a"]
    place = f"model m applied_to v2 task {name}, the patch base/direct/1"
    with pytest.raises(InputError, match=f"^{place}: {problem}.*; .*scoring.dtype: float32$"):
        program.score(arguments, SETTINGS, cells, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_may_be_minus_infinity_but_not(value: float) -> None:
    samples = [
        {"doc_id": 0, "resps": [["text"], ["nan"]]},
        {"doc_id": 1, "resps": [[(-math.inf, False)], [(-0.5, True)]]},
    ]
    validity.check_answers(samples)
    samples.append({"doc_id": 2, "resps": [[[value, False]], [[-1.5, True]]]})
    with pytest.raises(InputError, match=rf"^1 of 4 .*\(first: {value}, document 2\)"):
        validity.check_answers(samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_are_finite(value: float) -> None:
    validity.check_metrics({"acc,none": {"value": 0.5, "stderr": None, "n": 2}})
    with pytest.raises(InputError, match=rf"^the score acc,none is {value}; "):
        validity.check_metrics({"acc,none": {"value": value, "stderr": None, "n": 2}})


def test_cells_that_are_not_finite_are_scored_again(tmp_path: Path) -> None:
    results, samples = tmp_path / "r.json", tmp_path / "r.jsonl"
    cost = vars(manifests.Cost(1.0, 2, "cpu", 0, []))
    scores = {"a": 0.5, "b": 0.5, "c": math.nan}
    cells = [
        {"key": key, "samples": 1, "metrics": {"acc,none": {"value": value}}}
        for key, value in scores.items()
    ]
    files.write_json(results, {"lm_eval": {}, "cost": cost, "cells": cells})
    answers = {"a": -1.0, "b": math.nan, "c": -1.0}
    files.write_json_lines(
        samples,
        [{"cell": key, "doc_id": 0, "resps": [[[value, True]]]} for key, value in answers.items()],
    )
    assert list(cache.read_scored(results, samples).cells) == ["a"]
