"""Tiny models, tokenizers and adapters for tests, created in milliseconds."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from portllm.training import pretraining

SENTENCES = [
    "the cat sat on the mat and the dog lay by the door",
    "Question: is it so? Answer: yes, it is so, or no, it is not",
]


def config(model_type: str = "mistral", **more: Any) -> dict[str, Any]:
    """Return the configuration of a two-layer model."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    return {"model_type": model_type, **sizes, **more}


def tokenizer() -> Any:
    """Return a byte-level tokenizer."""
    return pretraining.train_tokenizer(SENTENCES, 300)


def save_model(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any
) -> Path:
    """Write a model with random weights, in several shards if `max_shard_size` is given."""
    shard = more.pop("max_shard_size", "1GB")
    words = tokenizer()
    torch.manual_seed(seed)
    model = pretraining.build_model(config(**more), words).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(directory, max_shard_size=shard)
    words.save_pretrained(directory)
    return directory


# Settings that differ from `save_adapter`'s defaults in rank, scaling and target modules.
UNLIKE: dict[str, Any] = {
    "seed": 2,
    "r": 4,
    "use_rslora": True,
    "target_modules": ["q_proj", "down_proj"],
}


def save_adapter(directory: Path, model: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Write a LoRA adapter with random factors for a model."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    values = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **settings}
    wrapped = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **values))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(directory)
    return directory


def spoil(directory: Path, value: float = math.nan, *, weight: str = "q_proj") -> str:
    """Set the first number of the first weight with `weight` in its name; return that name."""
    for path in sorted(directory.glob("*.safetensors")):
        tensors = load_file(path)
        for name in sorted(tensors):
            if weight in name:
                tensors[name].view(-1)[0] = value
                save_file(tensors, path, metadata={"format": "pt"})
                return name
    raise ValueError(f"{directory} has no weight {weight}")
