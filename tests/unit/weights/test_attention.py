"""Models with capped attention scores are loaded with an attention that caps them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from portllm.scoring import hf
from portllm.training import patch_training
from portllm.weights import attention


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral"}, "sdpa"),
        ({"model_type": "gemma2"}, "eager"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 30.0}, "eager"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "sdpa"),
        ({"model_type": "gemma3", "text_config": {"attn_logit_softcapping": None}}, "sdpa"),
        ({"model_type": "x", "text_config": {"attn_logit_softcapping": 5.0}}, "eager"),
    ],
)
def test_the_implementation_follows_the_configuration(
    config: dict[str, Any], expected: str
) -> None:
    assert attention.implementation(config) == expected


def test_gemma_is_trained_and_scored_with_its_cap(tmp_path: Path) -> None:
    # A small cap and large weights, so that it matters.
    version = tiny.save_model(tmp_path, model_type="gemma2", attn_logit_softcapping=0.5)
    tokens = torch.arange(40).reshape(2, 20)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.to(torch.float32).eval()(tokens).logits

    def loaded(name: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(version, attn_implementation=name)
        return logits(model)

    for parameter in (model := AutoModelForCausalLM.from_pretrained(version)).parameters():
        if parameter.dim() == 2:
            parameter.data *= 20
    model.save_pretrained(version)
    expected = loaded("eager")
    assert (expected - loaded("sdpa")).abs().max() > 0.01
    scored, _ = hf.load_version(version, "float32")
    trained = patch_training.load_model(version, patch_training.LoraSettings(precision="float32"))
    torch.testing.assert_close(logits(scored), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(trained), expected, rtol=0, atol=0)
