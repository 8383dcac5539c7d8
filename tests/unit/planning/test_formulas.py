"""The plan's known architectures and formulas, checked against transformers and PEFT.

Models are built on the meta device: their shapes are real, their weights are not there.
"""

from typing import Any

import pytest
import tiny
import torch
from conftest import PROJECT
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from portllm.planning import architectures, known_versions

KNOWN = known_versions.hub_models(PROJECT / "resources" / "models")
# Total parameters; trainable ones of rank 8 on all linear projections.
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, 20_971_520),
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, 19_988_480),
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 20_971_520),
    "google/gemma-2-9b": (9_241_705_984, 27_009_024),
    "Qwen/Qwen2-0.5B": (494_032_768, 4_399_104),
}
SMALL = [
    tiny.config("mistral", vocab_size=300),
    tiny.config("llama", vocab_size=300),
    tiny.config("llama", vocab_size=300, attention_bias=True, mlp_bias=True),
    tiny.config("llama", vocab_size=300, tie_word_embeddings=True, num_key_value_heads=2),
    tiny.config("gemma2", vocab_size=300, head_dim=16),
    tiny.config("qwen2", vocab_size=300),
    tiny.config("qwen3", vocab_size=300),
]


def build(config: dict[str, Any]) -> Any:
    fields = {name: value for name, value in config.items() if name not in ("hub", "dtype")}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def trainable(model: Any, rank: int, targets: Any = "all-linear") -> int:
    settings = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets)
    with torch.device("meta"):
        return get_peft_model(model, settings).get_nb_trainable_parameters()[0]


def test_every_known_model_is_tested() -> None:
    assert KNOWN.keys() == {hub.lower() for hub in PUBLISHED}


@pytest.mark.parametrize("hub", PUBLISHED)
def test_parameter_counts_of_real_models(hub: str) -> None:
    config = KNOWN[hub.lower()]
    total, patch = PUBLISHED[hub]
    model = build(config)
    assert model.num_parameters() == total
    assert trainable(model, 8) == patch
    assert architectures.parameters(architectures.architecture(config)) == total
    assert architectures.lora_parameters(architectures.architecture(config), 8) == patch


@pytest.mark.parametrize("config", SMALL)
def test_parameter_counts_of_small_models(config: dict[str, Any]) -> None:
    model = build(config)
    known = architectures.architecture(config)
    assert architectures.parameters(known) == model.num_parameters()
    assert architectures.lora_parameters(known, 3) == trainable(model, 3)


def test_parameter_counts_of_selected_projections() -> None:
    named = ["q_proj", "v_proj"]
    known = architectures.architecture(SMALL[0])
    assert architectures.lora_parameters(known, 4, named) == trainable(build(SMALL[0]), 4, named)


# Without tested formulas: experts, fused and parallel projections, other norms, other names.
OTHERS = ["gpt2", "gpt_neox", "phi3", "olmo2", "granite", "starcoder2", "cohere", "qwen3_moe"]


@pytest.mark.parametrize("model_type", OTHERS)
def test_parameter_counts_of_other_architectures(model_type: str) -> None:
    config = AutoConfig.for_model(model_type).to_dict()
    known = architectures.architecture(config)
    assert model_type in known.guess
    total = build(config).num_parameters()
    assert architectures.parameters(known) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("model_type", architectures.DEFAULTS)
def test_missing_keys_default_as_in_transformers(model_type: str) -> None:
    config = AutoConfig.for_model(model_type).to_dict() | {"dtype": None}
    assert architectures.architecture(config) == architectures.architecture(
        {"model_type": model_type}
    )
