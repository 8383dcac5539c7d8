"""Merging an adapter into a full checkpoint, shard by shard, without a model class."""

import logging
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from portllm import adapters, checkpoints

log = logging.getLogger(__name__)

# What belongs to a checkpoint beside its weights: configuration and tokenizer.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)


def scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """Factor of B·A for a module: alpha/r, or alpha/√r for rslora (Kalajdzievski 2023).

    `alpha_pattern` is matched as PEFT matches it: a regular expression for the name's end.
    """
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


@dataclass(frozen=True)
class Delta:
    """The change of one weight: factor · B·A with A (rank, in) and B (out, rank)."""

    a: ndarray
    b: ndarray
    factor: float
    transposed: bool = False


def deltas_of(adapter: adapters.Adapter) -> dict[str, Delta]:
    """The change that an adapter makes to each weight, by the weight's name."""
    config, tensors = adapter.config, adapter.tensors
    deltas = {}
    for weight, parts in adapters.factors(list(tensors)).items():
        embedding = "lora_embedding_A" in parts
        kind = "lora_embedding" if embedding else "lora"
        a, b = tensors[parts[f"{kind}_A"]], tensors[parts[f"{kind}_B"]]
        factor = scaling(config, weight.removesuffix(".weight"), a.shape[0])
        transposed = embedding or bool(config.get("fan_in_fan_out"))
        deltas[weight] = Delta(a, b, factor, transposed)
    return deltas


def add_delta(weight: Tensor, delta: Delta) -> Tensor:
    """Add a change to a weight, in float32 and rounded once to the weight's dtype."""
    product = torch.from_numpy(delta.b @ delta.a) * delta.factor
    if delta.transposed:
        product = product.T
    return (weight.float() + product).to(weight.dtype)


def _merged_shard(shard: Path, deltas: dict[str, Delta]) -> dict[str, Tensor]:
    with safe_open(shard, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in tensors.keys() & deltas.keys():
        tensors[name] = add_delta(tensors[name], deltas[name])
    return tensors


def copy_companions(model: Path, directory: Path) -> None:
    """Copy a checkpoint's configuration and tokenizer files."""
    for pattern in COMPANIONS:
        for path in model.glob(pattern):
            shutil.copyfile(path, directory / path.name)


def merge(model: Path, adapter: adapters.Adapter, directory: Path) -> None:
    """Write the checkpoint `model` with `adapter` added to it into `directory`.

    The caller has checked that it fits. Memory is bounded by the largest shard.
    """
    deltas = deltas_of(adapter)
    with torch.inference_mode():
        for shard in checkpoints.shards(model):
            with safe_open(shard, framework="pt") as file:
                metadata = file.metadata()
            save_file(_merged_shard(shard, deltas), directory / shard.name, metadata=metadata)
            log.info("merged %s", shard.name)
    if (model / checkpoints.INDEX).exists():
        shutil.copyfile(model / checkpoints.INDEX, directory / checkpoints.INDEX)
    copy_companions(model, directory)
