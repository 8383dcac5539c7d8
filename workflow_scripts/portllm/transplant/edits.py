"""What an adapter or a port does to each weight of a model.

An edit changes a block of rows of one weight, in a dtype that is wider than the stored one. It
needs no model class, and never more than a block of the weight in memory.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from portllm.errors import InputError
from portllm.transplant import methods
from portllm.transplant.blocks import Apply
from portllm.transplant.ports import Port
from portllm.weights import adapters, finite
from portllm.weights.adapters import Adapter

log = logging.getLogger(__name__)


def scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the factor of B·A: alpha/r, or alpha/√r for rslora (Kalajdzievski 2023)."""
    alpha = adapters.value_for_module(config, "lora_alpha", "alpha_pattern", module)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


@dataclass(frozen=True)
class Delta:
    """The change of one weight: factor · B·A with A (rank, in) and B (out, rank), in float32."""

    a: ndarray
    b: ndarray
    factor: float
    transposed: bool = False

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(rows, rank) and (rank, columns), whose product is the change in the weight's layout."""
        left, right = torch.from_numpy(self.b).double(), torch.from_numpy(self.a).double()
        if self.transposed:
            left, right = right.T, left.T
        return (left * self.factor).to(dtype), right.to(dtype).contiguous()

    def expanded(self) -> ndarray:
        """The change itself, in float32 and in the weight's layout."""
        left, right = self.factors(torch.float32)
        return (left @ right).numpy()


def _delta(adapter: Adapter, weight: str, a: str, b: str) -> Delta:
    tensors = adapter.tensors[a], adapter.tensors[b]
    for name, tensor in zip((a, b), tensors, strict=True):
        finite.check_array(tensor, f"adapter tensor {name}")
    factor = scaling(adapter.config, weight.removesuffix(".weight"), tensors[0].shape[0])
    _check_scale(factor, weight)
    transposed = ".lora_embedding_A" in a or bool(adapter.config.get("fan_in_fan_out"))
    return Delta(*tensors, factor, transposed)


def deltas_of(adapter: Adapter) -> dict[str, Delta]:
    """Return the change that an adapter adds to each weight, by the weight's name.

    Raises InputError for an adapter that does more than add, such as DoRA.
    """
    if not adapters.is_sum(adapter):
        raise InputError(
            "expected an additive patch; found DoRA or modules_to_save, which do more than add to "
            "weights"
        )
    return {
        weight: _delta(adapter, weight, *both)
        for weight, parts in adapters.factors(list(adapter.tensors)).items()
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

    def prepared(self, dtype: torch.dtype) -> Apply:
        """See `blocks.Edit`."""
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
        """Whether an output's numbers form a column, so that all rows are needed at once."""
        return self.delta.transposed

    def prepared(self, dtype: torch.dtype) -> Apply:
        """See `blocks.Edit`."""
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
    """A weight of `modules_to_save`, which replaces the model's."""

    weight: ndarray

    whole = False

    def prepared(self, dtype: torch.dtype) -> Apply:
        """See `blocks.Edit`."""
        weight = torch.from_numpy(self.weight)
        weight = weight.reshape(len(weight), -1)

        def replace(rows: Tensor, start: int) -> None:
            rows.copy_(weight[start : start + len(rows)])

        return replace


@dataclass(frozen=True)
class Dense:
    """W + f(w₁·Δ₁, w₂·Δ₂, …) for a dense method f, which sees the whole change of each patch."""

    name: str
    terms: Sequence[tuple[float, Delta]]
    method: str
    parameters: dict[str, float | int]

    whole = True

    def change(self) -> ndarray:
        """The change to add, in float32."""
        changes = [numpy.float32(weight) * delta.expanded() for weight, delta in self.terms]
        return methods.get(self.method).apply(self.name, changes, **self.parameters)

    def prepared(self, dtype: torch.dtype) -> Apply:
        """See `blocks.Edit`."""

        def add(rows: Tensor, start: int) -> None:
            rows.add_(torch.from_numpy(self.change()).reshape(rows.shape))

        return add


Edits = dict[str, Sum | Dora | Replacement | Dense]


def edits_of(adapter: Adapter, *, weight: float = 1.0) -> Edits:
    """Return what an adapter does to each weight, times `weight`, by the weight's name.

    Raises InputError where `weight` is not one and the adapter does more than add.
    """
    if weight != 1.0:
        return {name: Sum(terms) for name, terms in _terms([(adapter, weight)]).items()}
    edits: Edits = {}
    for name, parts in adapters.factors(list(adapter.tensors)).items():
        both = adapters.pair(parts)
        if both is None:
            edits[name] = Replacement(adapter.tensors[parts[adapters.WHOLE]])
            log.warning("%s is replaced: the version's own weight is lost", name)
        elif adapters.MAGNITUDE in parts:
            magnitude = adapter.tensors[parts[adapters.MAGNITUDE]]
            edits[name] = Dora(_delta(adapter, name, *both), magnitude)
        else:
            edits[name] = Sum([(1.0, _delta(adapter, name, *both))])
    return edits


def _check_scale(scale: float, name: str) -> None:
    finite.check_number(scale, f"{name}: scale of the patch (its weight times lora_alpha/r)")


def _terms(patches: Iterable[tuple[Adapter, float]]) -> dict[str, list[tuple[float, Delta]]]:
    terms: dict[str, list[tuple[float, Delta]]] = {}
    for adapter, weight in patches:
        for name, delta in deltas_of(adapter).items():
            _check_scale(weight * delta.factor, name)
            terms.setdefault(name, []).append((weight, delta))
    return terms


def weighted_sum(patches: Sequence[tuple[Adapter, float]]) -> Edits:
    """Return the sum of what several adapters add, each times its weight.

    Raises InputError where one of several does more than add.
    """
    if len(patches) == 1:
        return edits_of(patches[0][0], weight=patches[0][1])
    return {name: Sum(terms) for name, terms in _terms(patches).items()}


def edits_of_port(port: Port) -> Edits:
    """Return what a port does to each weight of a model."""
    patches = port.adapters()
    if not port.dense:
        return weighted_sum(patches)
    return {
        name: Dense(name, terms, port.method, port.parameters or {})
        for name, terms in _terms(patches).items()
    }
