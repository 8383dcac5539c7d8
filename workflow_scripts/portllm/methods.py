"""Transplant methods: what becomes of a patch when it moves to another version of its model.

A method is a function of the patch's LoRA factors that gives the factors to apply. To add one,
write the function and register it with its parameters and its source. Tensors are only named in
annotations, so that a configuration can be checked without loading torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes."""

    description: str
    default: float


@dataclass(frozen=True)
class Method:
    """A registered method. `apply` maps adapter tensors, by their PEFT names, to new ones."""

    name: str
    source: str
    parameters: dict[str, Parameter]
    apply: Callable[..., Tensors]


_registry: dict[str, Method] = {}


def register(
    *, source: str, **parameters: Parameter
) -> Callable[[Callable[..., Tensors]], Callable[..., Tensors]]:
    """Register the decorated function under its own name."""

    def add(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
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


def check(kind: str, parameters: dict[str, Any]) -> dict[str, float]:
    """Parameters of a method with its defaults filled in.

    Raises InputError for an unknown method or parameter, or a value that is no number.
    """
    method = get(kind)
    for name, value in parameters.items():
        if name not in method.parameters:
            raise InputError(
                f"{kind} has no parameter {name!r}; {nearest(name, method.parameters)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{kind}.{name}: found {value!r}, expected a number")
    return {name: parameter.default for name, parameter in method.parameters.items()} | parameters


@register(source="Khan et al., PortLLM, ICLR 2025, arXiv 2410.10870: θ′ + Δθ")
def direct(tensors: Tensors) -> Tensors:
    """Apply the patch as it is."""
    return tensors


@register(
    source="Ilharco et al., Editing models with task arithmetic, ICLR 2023: θ′ + λ·Δθ",
    scale=Parameter("λ, the factor of the patch", 1.0),
)
def scaled(tensors: Tensors, *, scale: float) -> Tensors:
    """Apply λ times the patch. λ goes to one factor of each product B·A, exactly once."""
    return {
        name: tensor * scale if _carries_scale(name) else tensor for name, tensor in tensors.items()
    }


def _carries_scale(name: str) -> bool:
    return ".lora_B." in name or ".lora_embedding_B" in name
