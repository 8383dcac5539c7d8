"""Transplant methods: what becomes of a patch when it moves to another version of its model.

A method is a function of one weight's LoRA factors, A (rank, in) and B (out, rank), that gives the
factors to apply, so that the result is an adapter again. A dense method is a function of the
changes themselves, one array for each patch, that gives the change to add; no adapter holds its
result. To add a method, write the function and register it with its parameters and its source.
numpy is imported where it is used, so that a configuration is checked without it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from portllm.errors import InputError, nearest

if TYPE_CHECKING:
    from numpy import ndarray

Factors = tuple["ndarray", "ndarray"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes; a whole one where its default is whole."""

    description: str
    default: float | int
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Method:
    """A registered method. `apply` gets factors A and B of a weight, or its dense changes."""

    name: str
    source: str
    parameters: dict[str, Parameter]
    apply: Callable[..., Any]
    dense: bool = False


_registry: dict[str, Method] = {}


def register(
    *, source: str, dense: bool = False, **parameters: Parameter
) -> Callable[[Function], Function]:
    """Register the decorated function under its own name."""

    def add(function: Function) -> Function:
        name = function.__name__
        _registry[name] = Method(name, source, parameters, function, dense)
        return function

    return add


def known() -> list[str]:
    """Names of the registered methods."""
    return sorted(_registry)


def get(kind: str) -> Method:
    """The method of a name; InputError with the nearest name where there is none."""
    if kind not in _registry:
        raise InputError(f"no transplant method {kind!r}; {nearest(kind, known())}")
    return _registry[kind]


def _check_number(place: str, value: Any, parameter: Parameter) -> None:
    kind = "whole number" if isinstance(parameter.default, int) else "number"
    wanted = int if kind == "whole number" else int | float
    least, most = parameter.least, parameter.most
    range_ = "" if least is None else f" from {least} to {most}" if most else f", {least} or more"
    usable = isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or (least is not None and value < least) or (most is not None and value > most):
        raise InputError(f"{place}: found {value!r}, expected a {kind}{range_}")


def check(kind: str, parameters: dict[str, Any]) -> dict[str, float | int]:
    """Parameters of a method with its defaults filled in.

    Raises InputError for an unknown method or parameter, or a value that is no number.
    """
    method = get(kind)
    for name, value in parameters.items():
        if name not in method.parameters:
            raise InputError(
                f"{kind} has no parameter {name!r}; {nearest(name, method.parameters)}"
            )
        _check_number(f"{kind}.{name}", value, method.parameters[name])
    return {name: parameter.default for name, parameter in method.parameters.items()} | parameters


@register(source="Khan et al., PortLLM, ICLR 2025, arXiv 2410.10870: θ′ + Δθ")
def direct(weight: str, a: "ndarray", b: "ndarray") -> Factors:
    """Apply the patch as it is."""
    return a, b


@register(
    source="Ilharco et al., Editing models with task arithmetic, ICLR 2023: θ′ + λ·Δθ",
    scale=Parameter("λ, the factor of the patch", 1.0),
)
def scaled(weight: str, a: "ndarray", b: "ndarray", *, scale: float) -> Factors:
    """Apply λ times the patch. λ goes to one factor of each product B·A, exactly once."""
    return a, b * scale


def product_norm(a: "ndarray", b: "ndarray") -> float:
    """Frobenius norm of B·A, which is never expanded: ‖BA‖² = tr(BᵀB·AAᵀ), in float64."""
    import numpy

    wide_a, wide_b = a.astype(numpy.float64), b.astype(numpy.float64)
    return float(numpy.sqrt(max(0.0, ((wide_b.T @ wide_b) * (wide_a @ wide_a.T)).sum())))


@register(
    source="control of this project; norms are matched as in Li et al., Visualizing the loss "
    "landscape of neural nets, NeurIPS 2018, here for each weight",
    seed=Parameter("seed of the directions", 0, least=0),
)
def random_direction(weight: str, a: "ndarray", b: "ndarray", *, seed: int) -> Factors:
    """Replace each weight's change by a random one of its rank and its Frobenius norm.

    Both factors are drawn from a normal distribution, so that no row or column space is preferred.
    The draw depends on the seed, the weight's name and the patch: two patches get two directions.
    """
    import numpy

    patch = hashlib.sha256(weight.encode() + a.tobytes() + b.tobytes()).digest()
    generator = numpy.random.default_rng([seed, *numpy.frombuffer(patch, "<u4")])
    new_a = generator.standard_normal(a.shape, dtype=numpy.float32)
    new_b = generator.standard_normal(b.shape, dtype=numpy.float32)
    drawn = product_norm(new_a, new_b)
    return new_a, (new_b * (product_norm(a, b) / drawn)).astype(numpy.float32)


@register(
    source="Yadav et al., TIES-merging, NeurIPS 2023, arXiv 2306.01708, algorithm 1, with each "
    "weight trimmed by itself, as mergekit does",
    dense=True,
    density=Parameter("part of each change's numbers that is kept, the largest", 0.2, 0, 1),
    scale=Parameter("λ, the factor of the merged change", 1.0),
)
def ties(weight: str, changes: Sequence["ndarray"], *, density: float, scale: float) -> "ndarray":
    """Trim each patch's change, elect each number's sign, average those that agree with it.

    With one patch, that is to trim it.
    """
    import numpy

    trimmed = [_largest(change, density) for change in changes]
    elected = numpy.sign(sum(trimmed))
    total = numpy.zeros_like(trimmed[0])
    count = numpy.zeros_like(trimmed[0])
    for change in trimmed:
        agrees = (numpy.sign(change) == elected) & (change != 0)
        total += numpy.where(agrees, change, 0)
        count += agrees
    return total / numpy.maximum(count, 1) * numpy.float32(scale)


def _largest(change: "ndarray", density: float) -> "ndarray":
    import numpy

    dropped = change.size - round(change.size * density)
    if dropped == 0:
        return change
    size = numpy.abs(change).ravel()
    # Exactly so many, whatever numbers are equal.
    smallest = numpy.argpartition(size, dropped - 1)[:dropped]
    kept = change.copy()
    kept.ravel()[smallest] = 0
    return kept


@register(
    source="Yu et al., Language models are super Mario (DARE), ICML 2024, arXiv 2311.03099: "
    "numbers of Δ are dropped with probability p, the others divided by 1 − p",
    dense=True,
    drop=Parameter("p, the probability that a number is dropped", 0.9, 0, 0.9999),
    seed=Parameter("seed of the draws", 0, least=0),
)
def dare(weight: str, changes: Sequence["ndarray"], *, drop: float, seed: int) -> "ndarray":
    """Drop numbers of each patch's change at random, rescale the rest, and add the patches.

    The draw depends on the seed, the weight's name and the patch's place among the patches.
    """
    import numpy

    name = numpy.frombuffer(hashlib.sha256(weight.encode()).digest(), "<u4")
    total = numpy.zeros_like(changes[0])
    for place, change in enumerate(changes):
        generator = numpy.random.default_rng([seed, place, *name])
        kept = generator.random(change.shape, dtype=numpy.float32) >= drop
        total += numpy.where(kept, change / numpy.float32(1 - drop), 0)
    return total
