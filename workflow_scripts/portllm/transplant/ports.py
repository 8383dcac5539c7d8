"""Ports: patches and the transplant method that turns them into a change of a version.

A port of a method whose result is low-rank is written as an adapter that any PEFT program can
attach. The result of a dense method is as large as the weights that it changes, so such a port
stores the patches and a recipe (`transplant.json`); the change is computed when it is applied. It
has no adapter_config.json, so no other program mistakes the untreated patch for the port.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage.file_systems import real_path
from portllm.storage.files import read_object, write_json
from portllm.transplant import methods
from portllm.weights import adapters, finite
from portllm.weights.adapters import Adapter, StoredAdapter

RECIPE = "transplant.json"

ATTACHED = "attached adapter"
MERGED = "merged weights"

Parameters = dict[str, float | int]


@dataclass(frozen=True)
class WeightedPatch:
    """An adapter and the factor with which it is applied."""

    adapter: StoredAdapter
    weight: float = 1.0


@dataclass(frozen=True)
class Port:
    """Patches, and the method that turns them into what is added to a version."""

    patches: tuple[WeightedPatch, ...]
    method: str = "direct"
    parameters: Parameters | None = None

    @property
    def dense(self) -> bool:
        """Whether the method's result is too large for an adapter."""
        return methods.get(self.method).dense

    def adapters(self) -> list[tuple[Adapter, float]]:
        """Load the patches, as a low-rank method changes them, and their factors."""
        loaded = [(patch.adapter.load(), patch.weight) for patch in self.patches]
        if self.dense:
            return loaded
        parameters = self.parameters or {}
        return [
            (transplanted(adapter, self.method, parameters), weight) for adapter, weight in loaded
        ]


def transplanted(adapter: Adapter, method: str, parameters: Parameters) -> Adapter:
    """Apply a low-rank transplant method to an adapter. `parameters` are complete.

    Raises InputError for a dense method, and for a method other than `direct` on an adapter that
    does more than add.
    """
    if methods.get(method).dense:
        raise InputError(f"the result of method {method} is not an adapter")
    apply = methods.get(method).apply
    if method != "direct" and not adapters.is_sum(adapter):
        raise InputError(
            f"method {method} needs an additive patch; found DoRA or modules_to_save, which only "
            "direct supports"
        )
    tensors = {}
    for weight, parts in adapters.factors(list(adapter.tensors)).items():
        kept = {name: adapter.tensors[name] for name in parts.values()}
        both = adapters.pair(parts)
        if both is not None:
            a, b = (adapter.tensors[name] for name in both)
            kept.update(zip(both, apply(weight, a, b, **parameters), strict=True))
        tensors.update(kept)
    return Adapter(adapter.config, tensors)


def is_dense(directory: Path) -> bool:
    """Whether `directory` holds the port of a dense method."""
    return (directory / RECIPE).is_file()


def how_applied(directory: Path | None) -> str | None:
    """Describe how scoring applies a port or patch; None without one."""
    if directory is None:
        return None
    return MERGED if is_dense(directory) else ATTACHED


def read(directory: Path) -> Port:
    """Read a port; raises InputError where `directory` holds neither a port nor an adapter."""
    if not is_dense(directory):
        return Port((WeightedPatch(StoredAdapter(directory)),), "direct", {})
    path = directory / RECIPE
    recipe = read_object(path, method=str, parameters=dict, patches=list)
    try:
        entries = [(entry["directory"], entry["weight"]) for entry in recipe["patches"]]
        method, parameters = recipe["method"], recipe["parameters"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not the recipe of a port: expected method, parameters and patches ({error!r})"
        ) from None
    if not entries:
        raise InputError(f"{path}: patches: found none, expected one or more")
    patches = []
    for index, (name, weight) in enumerate(entries):
        place = f"{path}: patches[{index}]"
        _check_inside(name, directory, f"{place}.directory")
        finite.check_number(weight, f"{place}.weight")
        patches.append(WeightedPatch(StoredAdapter(directory / name), float(weight)))
    return Port(tuple(patches), method, methods.check(method, parameters))


def _check_inside(name: Any, directory: Path, place: str) -> None:
    inside = isinstance(name, str) and "\0" not in name
    if not inside or real_path(directory) not in real_path(directory / name).parents:
        raise InputError(f"{place}: found {name!r}, expected a directory inside {directory}")


def write(port: Port, directory: Path, *, base: Path | str, revision: str | None = None) -> None:
    """Write a port for the version `base`, a directory or a `revision` on the hub.

    Raises InputError for several patches, or a weighted one, of a method that makes an adapter.
    """
    if not port.dense:
        if len(port.patches) > 1 or port.patches[0].weight != 1.0:
            raise InputError(
                "an adapter holds one unscaled patch; merge the weighted sum into a checkpoint "
                "instead, or scale the patch with --method scaled"
            )
        adapters.save(port.adapters()[0][0], directory, base=base, revision=revision)
        return
    entries = []
    for index, patch in enumerate(port.patches):
        place = directory / "patches" / str(index)
        place.mkdir(parents=True)
        patch.adapter.load()  # raises for tensors that are not finite
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            shutil.copyfile(patch.adapter.directory / name, place / name)
        entries.append({"directory": str(place.relative_to(directory)), "weight": patch.weight})
    recipe = {"method": port.method, "parameters": port.parameters, "patches": entries}
    write_json(directory / RECIPE, recipe)


def open_port(
    directories: Sequence[Path], weights: Sequence[float], method: str, parameters: Parameters
) -> Port:
    """Open the port that a method makes of patches, or an existing port of a dense method.

    Args:
        directories: adapters, or one port.
        weights: the factor of each.
        method: a registered transplant method.
        parameters: its parameters; the defaults fill in the others.

    Raises:
        InputError: where a dense port is combined, scaled or given another method.

    """
    parameters = methods.check(method, parameters)
    dense = next((directory for directory in directories if is_dense(directory)), None)
    if dense is None:
        patches = tuple(
            WeightedPatch(StoredAdapter(directory), weight)
            for directory, weight in zip(directories, weights, strict=True)
        )
        return Port(patches, method, parameters)
    port = read(dense)
    if len(directories) > 1 or method != "direct" or abs(weights[0]) != 1.0:
        raise InputError(
            f"{dense} is a port of method {port.method}, which can only be applied alone and "
            "unchanged; give its patches instead"
        )
    signed = tuple(
        WeightedPatch(patch.adapter, patch.weight * weights[0]) for patch in port.patches
    )
    return Port(signed, port.method, port.parameters)
