"""What an adapter does to each weight of a model, and checkpoints in which that is done.

An edit is applied to a block of rows of one weight, in the dtype of `arithmetic`, so that it needs
no model class and never more than a block in memory. `portllm.transplant.streaming` brings the
blocks.
"""

import logging
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from portllm.errors import InputError, nearest
from portllm.storage.files import read_json, write_json
from portllm.transplant import methods, ports, streaming
from portllm.weights import adapters, checkpoints
from portllm.weights.adapters import Adapter

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
    """The change of one weight: factor · B·A with A (rank, in) and B (out, rank), in float32."""

    a: ndarray
    b: ndarray
    factor: float
    transposed: bool = False

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(rows, rank) and (rank, columns) whose product is the change, as the weight lies."""
        left, right = torch.from_numpy(self.b).double(), torch.from_numpy(self.a).double()
        if self.transposed:
            left, right = right.T, left.T
        return (left * self.factor).to(dtype), right.to(dtype).contiguous()

    def expanded(self) -> ndarray:
        """The change itself, in float32, as the weight lies."""
        left, right = self.factors(torch.float32)
        return (left @ right).numpy()


def _delta(adapter: Adapter, weight: str, a: str, b: str) -> Delta:
    tensors = adapter.tensors[a], adapter.tensors[b]
    for name, tensor in zip((a, b), tensors, strict=True):
        if not numpy.isfinite(tensor).all():
            raise InputError(f"adapter tensor {name} holds numbers that are not finite")
    factor = scaling(adapter.config, weight.removesuffix(".weight"), tensors[0].shape[0])
    transposed = ".lora_embedding_A" in a or bool(adapter.config.get("fan_in_fan_out"))
    return Delta(*tensors, factor, transposed)


def deltas_of(adapter: Adapter) -> dict[str, Delta]:
    """The change that an adapter adds to each weight, by the weight's name.

    Raises InputError for an adapter that does more than to add.
    """
    if not adapters.is_sum(adapter):
        raise InputError("a patch with DoRA or modules_to_save is no sum that is added to weights")
    found = adapters.factors(list(adapter.tensors))
    return {
        weight: _delta(adapter, weight, *both)
        for weight, parts in found.items()
        if (both := adapters.pair(parts)) is not None
    }


@dataclass(frozen=True)
class Sum:
    """W + Σ wᵢ·Δᵢ, as one product of stacked factors."""

    terms: Sequence[tuple[float, Delta]]

    whole = False

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(rows, ranks) and (ranks, columns)."""
        pairs = [delta.factors(torch.float64) for _, delta in self.terms]
        weights = [weight for weight, _ in self.terms]
        left = [weight * left for weight, (left, _) in zip(weights, pairs, strict=True)]
        right = [right for _, right in pairs]
        return torch.cat(left, dim=1).to(dtype), torch.cat(right).to(dtype)

    def prepared(self, dtype: torch.dtype) -> streaming.Apply:
        """See `streaming.Edit`."""
        left, right = self.factors(dtype)

        def add(rows: Tensor, start: int) -> None:
            rows.addmm_(left[start : start + len(rows)], right)

        return add


@dataclass(frozen=True)
class Dora:
    """m·(W + Δ)/‖W + Δ‖, norms taken over each output's row (Liu et al. 2024, DoRA, eq. 5)."""

    delta: Delta
    magnitude: ndarray

    @property
    def whole(self) -> bool:
        """Whether an output's numbers lie in a column, so that all rows are needed at once."""
        return self.delta.transposed

    def prepared(self, dtype: torch.dtype) -> streaming.Apply:
        """See `streaming.Edit`."""
        left, right = self.delta.factors(dtype)
        magnitude = torch.from_numpy(self.magnitude).to(dtype)
        dim = 0 if self.whole else 1

        def rescale(rows: Tensor, start: int) -> None:
            rows.addmm_(left[start : start + len(rows)], right)
            norm = torch.linalg.vector_norm(rows, dim=dim, keepdim=True)
            part = magnitude if self.whole else magnitude[start : start + len(rows), None]
            rows.mul_(part / norm)

        return rescale


@dataclass(frozen=True)
class Replacement:
    """A weight of `modules_to_save`, which takes the place of the model's."""

    weight: ndarray

    whole = False

    def prepared(self, dtype: torch.dtype) -> streaming.Apply:
        """See `streaming.Edit`."""
        weight = torch.from_numpy(self.weight)
        weight = weight.reshape(len(weight), -1)

        def replace(rows: Tensor, start: int) -> None:
            rows.copy_(weight[start : start + len(rows)])

        return replace


@dataclass(frozen=True)
class Dense:
    """W + f(w₁·Δ₁, w₂·Δ₂, …) for a method f that looks at the numbers of whole changes."""

    name: str
    terms: Sequence[tuple[float, Delta]]
    method: str
    parameters: dict[str, float | int]

    whole = True

    def change(self) -> ndarray:
        """What is added, in float32."""
        changes = [numpy.float32(weight) * delta.expanded() for weight, delta in self.terms]
        return methods.get(self.method).apply(self.name, changes, **self.parameters)

    def prepared(self, dtype: torch.dtype) -> streaming.Apply:
        """See `streaming.Edit`."""

        def add(rows: Tensor, start: int) -> None:
            rows.add_(torch.from_numpy(self.change()).reshape(rows.shape))

        return add


Edits = dict[str, Sum | Dora | Replacement | Dense]


def edits_of(adapter: Adapter, *, weight: float = 1.0) -> Edits:
    """What an adapter does to each weight of a model, times `weight`, by the weight's name.

    Raises InputError where `weight` is not one and the adapter does more than to add.
    """
    if weight != 1.0:
        return {name: Sum([(weight, delta)]) for name, delta in deltas_of(adapter).items()}
    edits: Edits = {}
    for name, parts in adapters.factors(list(adapter.tensors)).items():
        both = adapters.pair(parts)
        if both is None:
            edits[name] = Replacement(adapter.tensors[parts[adapters.WHOLE]])
            log.warning("%s is replaced whole: what the version has there is lost", name)
        elif adapters.MAGNITUDE in parts:
            magnitude = adapter.tensors[parts[adapters.MAGNITUDE]]
            edits[name] = Dora(_delta(adapter, name, *both), magnitude)
        else:
            edits[name] = Sum([(1.0, _delta(adapter, name, *both))])
    return edits


def _terms(patches: Iterable[tuple[Adapter, float]]) -> dict[str, list[tuple[float, Delta]]]:
    terms: dict[str, list[tuple[float, Delta]]] = {}
    for adapter, weight in patches:
        for name, delta in deltas_of(adapter).items():
            terms.setdefault(name, []).append((weight, delta))
    return terms


def weighted_sum(patches: Sequence[tuple[Adapter, float]]) -> Edits:
    """What several adapters add together, each times its weight.

    Raises InputError where one of several does more than to add.
    """
    if len(patches) == 1:
        return edits_of(patches[0][0], weight=patches[0][1])
    return {name: Sum(terms) for name, terms in _terms(patches).items()}


def edits_of_port(port: ports.Port) -> Edits:
    """What a port does to each weight of a model."""
    patches = port.adapters()
    if not port.dense:
        return weighted_sum(patches)
    return {
        name: Dense(name, terms, port.method, port.parameters or {})
        for name, terms in _terms(patches).items()
    }


@contextmanager
@torch.no_grad()
def applied(weights: Mapping[str, Tensor], edits: Edits) -> Iterator[None]:
    """Edit the weights of a loaded model, on any device; the block's end puts back what was there.

    What was there is kept in host memory. Raises InputError for a weight that is not among them.
    """
    for name in edits:
        if name not in weights:
            raise InputError(f"the loaded model has no weight {name}; {nearest(name, weights)}")
    before = {name: weights[name].detach().to("cpu", copy=True) for name in edits}
    try:
        for name, edit in edits.items():
            dtype = streaming.arithmetic(before[name].dtype)
            wide = before[name].to(dtype, copy=True)
            edit.prepared(dtype)(wide.view(len(wide), -1), 0)
            weights[name].copy_(wide)
        yield
    finally:
        for name, kept in before.items():
            weights[name].copy_(kept)


def copy_companions(model: Path, directory: Path) -> None:
    """Copy a checkpoint's configuration and tokenizer files."""
    for pattern in COMPANIONS:
        for path in model.glob(pattern):
            shutil.copyfile(path, directory / path.name)


def _targets(model: Path, edits: Edits, names: Iterable[str]) -> streaming.Targets:
    """Where each weight's edit goes, a tied output layer getting a weight of its own.

    With LoRA on the embedding, the output layer of an adapted model still is the embedding as it
    was (and the other way round), so in a merged checkpoint the two are no longer one.
    """
    targets: streaming.Targets = {name: [(name, edit)] for name, edit in edits.items()}
    embedding = checkpoints.tied_embedding(model, names)
    if embedding is not None and targets.keys() & {embedding, checkpoints.HEAD}:
        both = (embedding, checkpoints.HEAD)
        targets.pop(checkpoints.HEAD, None)
        targets[embedding] = [(name, edits.get(name)) for name in both]
    return targets


def planned(model: Path, edits: Edits) -> streaming.MergePlan:
    """What a merged checkpoint would be made of, from headers alone."""
    return streaming.plan(model, _targets(model, edits, checkpoints.shapes(model)))


def merge_many(model: Path, outputs: dict[Path, Edits], **options: Any) -> streaming.Written:
    """Write, for each directory, the checkpoint `model` with its edits, in one pass over `model`.

    The directories exist and are empty. Options, result and errors are those of `streaming.write`.
    """
    names = list(checkpoints.shapes(model))
    targets = {where: _targets(model, edits, names) for where, edits in outputs.items()}
    written = streaming.write(model, targets, **options)
    for directory, wanted in targets.items():
        copy_companions(model, directory)
        if any(len(places) > 1 for places in wanted.values()):
            config = read_json(directory / "config.json")
            write_json(directory / "config.json", {**config, "tie_word_embeddings": False})
            log.warning(
                "%s: the output layer is tied to the embedding, which the patch changes; it gets "
                "a weight of its own, as an attached patch acts",
                directory,
            )
    return written


def merge(model: Path, adapter: Adapter, directory: Path) -> None:
    """Write the checkpoint `model` with `adapter` added to it into `directory`.

    The caller has checked that it fits.
    """
    merge_many(model, {directory: edits_of(adapter)}, hashed=False)
