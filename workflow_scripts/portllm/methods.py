"""Transplant methods: what becomes of a patch when it moves to another version of its model.

A method is a function of one weight's LoRA factors, A (rank, in) and B (out, rank), that gives the
factors to apply. To add one, write the function and register it with its parameters and its source.
numpy is imported where it is used, so that a configuration is checked without it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, nearest

if TYPE_CHECKING:
    from numpy import ndarray

Factors = tuple["ndarray", "ndarray"]


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes; a whole one, not below zero, where its default is whole."""

    description: str
    default: float | int


@dataclass(frozen=True)
class Method:
    """A registered method. `apply` maps the factors A and B of a weight to new ones."""

    name: str
    source: str
    parameters: dict[str, Parameter]
    apply: Callable[..., Factors]


_registry: dict[str, Method] = {}


def register(
    *, source: str, **parameters: Parameter
) -> Callable[[Callable[..., Factors]], Callable[..., Factors]]:
    """Register the decorated function under its own name."""

    def add(function: Callable[..., Factors]) -> Callable[..., Factors]:
        name = function.__name__
        _registry[name] = Method(name, source, parameters, function)
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
    whole = isinstance(parameter.default, int)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: found {value!r}, expected a {'whole ' if whole else ''}number")
    if whole and (not isinstance(value, int) or value < 0):
        raise InputError(f"{place}: found {value!r}, expected a whole number, zero or more")


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
    seed=Parameter("seed of the directions", 0),
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
