"""Checks of adapters against models, from headers alone, with precise errors."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
from peft import LoraConfig

from portllm.errors import InputError
from portllm.transplant import methods, ports
from portllm.weights import adapters, fit
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint


def test_an_adapter_fits_its_own_model_and_its_siblings(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    sibling = tiny.save_model(tmp_path / "sibling", seed=5)
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    fit.check(StoredAdapter(adapter), Checkpoint(model))
    fit.check(StoredAdapter(adapter), Checkpoint(sibling))


def test_a_different_shape_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    wider = tiny.save_model(tmp_path / "wider", intermediate_size=48)
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    with pytest.raises(InputError, match=r"layers\.0\.mlp.*\[.*32.*\].*\[.*48.*\] there"):
        fit.check(StoredAdapter(adapter), Checkpoint(wider))


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", num_hidden_layers=3)
    shallower = tiny.save_model(tmp_path / "shallower", num_hidden_layers=1)
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    with pytest.raises(InputError, match=r"changes model\.layers\.1\..*does not have; nearest"):
        fit.check(StoredAdapter(adapter), Checkpoint(shallower))


def _with_fingerprint(adapter: Path, **fingerprint: str) -> None:
    (adapter / "manifest.json").write_text(json.dumps({"fingerprint": fingerprint}))


def test_a_different_architecture_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", model_type="llama")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    _with_fingerprint(adapter, architecture="MistralForCausalLM")
    with pytest.raises(InputError, match=r"trained on MistralForCausalLM, found LlamaForCausalLM"):
        fit.check(StoredAdapter(adapter), Checkpoint(model))


def test_a_different_tokenizer_is_an_error_unless_allowed(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    _with_fingerprint(adapter, tokenizer="0" * 64)
    with pytest.raises(InputError, match=r"the vocabularies of their tokenizers differ"):
        fit.check(StoredAdapter(adapter), Checkpoint(model))
    fit.check(StoredAdapter(adapter), Checkpoint(model), allow_other_tokenizer=True)


def test_a_pickled_adapter_is_an_error(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors.*never loaded"):
        StoredAdapter(adapter)


def test_an_adapter_other_than_lora_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(InputError, match=r"found peft_type 'IA3', expected LORA"):
        StoredAdapter(adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "all"}, r"found bias 'all', expected 'none'"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices is set: .*rows"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights is 'pissa'.*convert it"),
    ],
)
def test_adapters_that_are_not_additive_are_errors(
    tmp_path: Path, settings: dict, message: str
) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, **settings)
    with pytest.raises(InputError, match=message):
        fit.check(StoredAdapter(adapter), Checkpoint(model))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a LoRA adapter for it."""
    folder = tmp_path_factory.mktemp("plain")
    model = tiny.save_model(folder / "model")
    return model, tiny.save_adapter(folder / "adapter", model)


def with_settings(adapter: Path, copy: Path, **settings: Any) -> Path:
    """Copy an adapter and change keys of its configuration."""
    shutil.copytree(adapter, copy)
    config = copy / adapters.CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return copy


@pytest.mark.parametrize(("option", "reason"), adapters._REFUSED.items())
def test_every_option_that_is_not_additive_is_an_error(
    plain: tuple[Path, Path], tmp_path: Path, option: str, reason: str
) -> None:
    # One that PEFT does not have would refuse nothing.
    assert option in {field.name for field in dataclasses.fields(LoraConfig)}
    model, adapter = plain
    fit.check(StoredAdapter(adapter), Checkpoint(model))
    changed = with_settings(adapter, tmp_path / "changed", **{option: {"some": "setting"}})
    message = re.escape(f"{option} is set: {reason}; expected plain LoRA")
    for use in (
        lambda: fit.check(StoredAdapter(changed), Checkpoint(model)),
        lambda: adapters.load(changed),
    ):
        with pytest.raises(InputError, match=message):
            use()


@pytest.mark.parametrize("start", [*adapters._CHANGES_THE_BASE, "pissa_niter_16"])
def test_initialisations_that_change_the_base_are_errors(
    plain: tuple[Path, Path], tmp_path: Path, start: str
) -> None:
    model, adapter = plain
    changed = with_settings(adapter, tmp_path / "changed", init_lora_weights=start)
    with pytest.raises(InputError, match=rf"init_lora_weights is '{start}'.*convert it"):
        fit.check(StoredAdapter(changed), Checkpoint(model))


@pytest.mark.parametrize("start", [True, False, "gaussian"])
def test_other_initialisations_are_accepted(
    plain: tuple[Path, Path], tmp_path: Path, start: bool | str
) -> None:
    model, adapter = plain
    changed = with_settings(adapter, tmp_path / "changed", init_lora_weights=start)
    fit.check(StoredAdapter(changed), Checkpoint(model))


def test_direct_changes_nothing_and_scaled_scales_the_product(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = adapters.load(tiny.save_adapter(tmp_path / "adapter", model))
    assert ports.transplanted(adapter, "direct", {}).tensors == adapter.tensors
    scaled = ports.transplanted(adapter, "scaled", {"scale": -2.5}).tensors
    checked = 0
    for parts in adapters.factors(list(adapter.tensors)).values():
        a, b = parts["lora_A"], parts["lora_B"]
        before = adapter.tensors[b] @ adapter.tensors[a]
        numpy.testing.assert_allclose(scaled[b] @ scaled[a], -2.5 * before, rtol=1e-5, atol=1e-7)
        checked += 1
    assert checked == 14


def test_method_parameters_are_checked() -> None:
    assert methods.check("scaled", {}) == {"scale": 1.0}
    assert methods.check("scaled", {"scale": 2}) == {"scale": 2}
    with pytest.raises(InputError, match=r"scaled\.scale: found 'two', expected a number"):
        methods.check("scaled", {"scale": "two"})
    with pytest.raises(InputError, match=r"random_direction\.seed: found 1\.5, expected a whole"):
        methods.check("random_direction", {"seed": 1.5})
    with pytest.raises(InputError, match=r"random_direction\.seed: found -1, expected a whole"):
        methods.check("random_direction", {"seed": -1})
    assert all(methods.get(name).source for name in methods.known())


@pytest.mark.parametrize("modules", ["all-linear", ["embed_tokens"]])
def test_a_random_direction_has_the_rank_and_norm_of_the_patch(
    tmp_path: Path, modules: str | list[str]
) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = adapters.load(tiny.save_adapter(tmp_path / "adapter", model, target_modules=modules))
    drawn, other = (
        ports.transplanted(adapter, "random_direction", {"seed": seed}) for seed in (0, 1)
    )
    again = ports.transplanted(adapter, "random_direction", {"seed": 0})
    checked = 0
    for parts in adapters.factors(list(adapter.tensors)).values():
        a, b = sorted(parts.values())
        patch, control, second = (
            these.tensors[b].astype(float) @ these.tensors[a] for these in (adapter, drawn, other)
        )
        assert numpy.linalg.norm(control) == pytest.approx(numpy.linalg.norm(patch), rel=1e-6)
        assert numpy.linalg.matrix_rank(control, rtol=1e-5) == adapter.tensors[a].shape[0]
        for one in (patch, second):
            cosine = (one * control).sum() / numpy.linalg.norm(one) / numpy.linalg.norm(control)
            assert abs(cosine) < 0.6
        assert (again.tensors[a] == drawn.tensors[a]).all()
        assert (again.tensors[b] == drawn.tensors[b]).all()
        checked += 1
    assert checked


def test_a_port_does_not_contain_the_old_embedding(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    saved = tiny.save_adapter(tmp_path / "adapter", model, target_modules=["embed_tokens"])
    adapter = adapters.load(saved)
    assert any(name.endswith("base_layer.weight") for name in adapter.tensors)
    fit.check(StoredAdapter(saved), Checkpoint(model))
    ported = ports.transplanted(adapter, "direct", {})
    assert sorted(ported.tensors) == [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
    ]
