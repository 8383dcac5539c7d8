"""What a recipe leaves open: the attention and the fused kernels, by model and GPU."""

from pathlib import Path
from typing import Any

import pytest

from portllm.errors import InputError
from portllm.training import recipe_defaults
from portllm.training.recipe_defaults import Device

MISTRAL = {"model_type": "mistral"}
GEMMA = {"model_type": "gemma2", "attn_logit_softcapping": 50.0}
PACKED = {"sample_packing": True, "bf16": "auto"}
A100, H100 = Device((8, 0)), Device((9, 0))
A100_WITH_FLASH = Device((8, 0), has_flash_attention=True)


@pytest.mark.parametrize(
    ("config", "recipe", "device", "expected"),
    [
        (MISTRAL, PACKED, None, "sdpa"),
        (MISTRAL, PACKED, H100, "sdpa"),
        (MISTRAL, PACKED, A100, "flex_attention"),
        (MISTRAL, PACKED, A100_WITH_FLASH, "flash_attention_2"),
        (MISTRAL, {"sample_packing": False, "bf16": True}, A100, "sdpa"),
        (MISTRAL, {"sample_packing": True, "bf16": False}, A100, "sdpa"),
        (GEMMA, PACKED, None, "eager"),
        (GEMMA, PACKED, A100, "eager"),
        (GEMMA, PACKED, H100, "eager"),
        ({"model_type": "gemma2"}, {}, None, "eager"),
        (GEMMA, {"attn_implementation": "flex_attention"}, None, "flex_attention"),
        (MISTRAL, {"attn_implementation": "xformers"}, A100, "xformers"),
    ],
)
def test_the_attention_fits_the_model_and_the_gpu(
    config: dict[str, Any], recipe: dict[str, Any], device: Device | None, expected: str
) -> None:
    final = recipe_defaults.complete(recipe, config, device)
    assert final["attn_implementation"] == expected


def test_an_older_key_for_the_attention_is_a_choice() -> None:
    final = recipe_defaults.complete({"flash_attention": True}, MISTRAL, A100)
    assert final == {"flash_attention": True}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"attn_implementation": "sdpa"}, "found sdpa, which leaves out the soft-capping of gemma"),
        ({"xformers_attention": True}, "found xformers_attention, which leaves out the soft-cap"),
        ({"adapter": "lora", "lora_mlp_kernel": True}, "lora_mlp_kernel: found true, expected f"),
    ],
)
def test_settings_that_compute_another_function_are_refused(
    recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe_defaults.complete(recipe, GEMMA, H100)
    recipe_defaults.complete(recipe, {"model_type": "llama"}, H100)


def test_kernels_that_need_a_compiler_are_off_unless_the_recipe_asks_for_them() -> None:
    for adapter in ("lora", "qlora"):
        final = recipe_defaults.complete({"adapter": adapter}, MISTRAL, H100)
        assert {final[kernel] for kernel in recipe_defaults.LORA_KERNELS} == {False}
    own = recipe_defaults.complete({"adapter": "lora", "lora_qkv_kernel": True}, MISTRAL, H100)
    assert own["lora_qkv_kernel"] is True
    assert "lora_o_kernel" not in own
    assert "lora_qkv_kernel" not in recipe_defaults.complete({}, MISTRAL, H100)


@pytest.mark.parametrize(
    "recipe", [PACKED, {"adapter": "lora", "lora_qkv_kernel": True, "sample_packing": False}]
)
def test_a_missing_compiler_is_found_before_the_training(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"compiles kernels .* lacks a C compiler \(gcc or clang\)"
    ):
        recipe_defaults.complete(recipe, MISTRAL, A100)
    recipe_defaults.complete(recipe, MISTRAL, None)
