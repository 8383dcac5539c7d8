"""Transplant methods: how a patch is transformed for another version of its model.

A low-rank method maps the LoRA factors of one weight, A (rank, in) and B (out, rank), to new
factors, so its result is again an adapter. A dense method maps the full changes of one weight, one
array per patch, to the change to add; its result does not fit into an adapter.

To add a method, write the function and register it with its parameters and source. numpy is
imported inside functions, so that configurations can be checked without it.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from portllm.errors import InputError, nearest, shown

if TYPE_CHECKING:
    from numpy import ndarray

Factors = tuple["ndarray", "ndarray"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """A numeric parameter of a method; an integer if its default is one."""

    description: str
    default: float | int
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Method:
    """A registered method. `apply` takes factors A and B of a weight, or its dense changes."""

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
    """List the names of the registered methods."""
    return sorted(_registry)


def get(kind: str) -> Method:
    """Return a method by name; raises InputError, with the nearest name, for an unknown one."""
    if kind not in _registry:
        raise InputError(f"no transplant method {kind!r}; {nearest(kind, known())}")
    return _registry[kind]


def _check_number(place: str, value: Any, parameter: Parameter) -> None:
    kind = "whole number" if isinstance(parameter.default, int) else "number"
    expected_type = int if kind == "whole number" else int | float
    least, most = parameter.least, parameter.most
    range_ = "" if least is None else f" from {least} to {most}" if most else f", {least} or more"
    usable = isinstance(value, expected_type) and not isinstance(value, bool)
    usable = usable and abs(value) <= sys.float_info.max  # false for NaN
    if not usable or (least is not None and value < least) or (most is not None and value > most):
        raise InputError(f"{place}: found {shown(value)}, expected a {kind}{range_}")


def check(kind: str, parameters: dict[str, Any]) -> dict[str, float | int]:
    """Check the parameters of a method and fill in its defaults.

    Raises:
        InputError: the method or a parameter is unknown, or a value is not in its range.
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
    """Apply the patch unchanged."""
    return a, b


@register(
    source="Ilharco et al., Editing models with task arithmetic, ICLR 2023: θ′ + λ·Δθ",
    scale=Parameter("λ, the factor of the patch", 1.0),
)
def scaled(weight: str, a: "ndarray", b: "ndarray", *, scale: float) -> Factors:
    """Apply λ times the patch: B of each product B·A is multiplied by λ."""
    return a, b * scale


def product_norm(a: "ndarray", b: "ndarray") -> float:
    """Return the Frobenius norm of B·A in float64, as ‖BA‖² = tr(BᵀB·AAᵀ), without the product."""
    import numpy

    wide_a, wide_b = a.astype(numpy.float64), b.astype(numpy.float64)
    return float(numpy.sqrt(max(0.0, ((wide_b.T @ wide_b) * (wide_a @ wide_a.T)).sum())))


@register(
    source="control of this project; norms are matched as in Li et al., Visualizing the loss "
    "landscape of neural nets, NeurIPS 2018, here for each weight",
    seed=Parameter("seed of the directions", 0, least=0),
)
def random_direction(weight: str, a: "ndarray", b: "ndarray", *, seed: int) -> Factors:
    """Replace each weight's change by a random one of the same rank and Frobenius norm.

    Both factors are drawn from a normal distribution, so that no row or column space is preferred.
    The draw depends on the seed, the weight's name and the patch, so it differs between patches.
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
    density=Parameter("share of each change's elements to keep, the largest ones", 0.2, 0, 1),
    scale=Parameter("λ, the factor of the merged change", 1.0),
)
def ties(weight: str, changes: Sequence["ndarray"], *, density: float, scale: float) -> "ndarray":
    """Trim each patch's change, elect the sign of each element, average the changes that agree.

    A single patch is only trimmed.
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
    magnitude = numpy.abs(change).ravel()
    # argpartition drops exactly this many, even if magnitudes are equal.
    smallest = numpy.argpartition(magnitude, dropped - 1)[:dropped]
    kept = change.copy()
    kept.ravel()[smallest] = 0
    return kept


@register(
    source="Yu et al., Language models are super Mario (DARE), ICML 2024, arXiv 2311.03099: "
    "elements of Δ are dropped with probability p, the others divided by 1 − p",
    dense=True,
    drop=Parameter("p, the probability that an element is dropped", 0.9, 0, 0.9999),
    seed=Parameter("seed of the draws", 0, least=0),
)
def dare(weight: str, changes: Sequence["ndarray"], *, drop: float, seed: int) -> "ndarray":
    """Drop elements of each patch's change at random, rescale the rest, and add the patches.

    The draw depends on the seed, the weight's name and the index of the patch.
    """
    import numpy

    name = numpy.frombuffer(hashlib.sha256(weight.encode()).digest(), "<u4")
    total = numpy.zeros_like(changes[0])
    for index, change in enumerate(changes):
        generator = numpy.random.default_rng([seed, index, *name])
        kept = generator.random(change.shape, dtype=numpy.float32) >= drop
        total += numpy.where(kept, change / numpy.float32(1 - drop), 0)
    return total
