"""Ports on disk: what is to be applied to a version, as an adapter or as a recipe for weights.

A port of a method whose result is low-rank is an adapter, which any PEFT program attaches. What a
dense method makes is no adapter and as large as the weights that it changes. Its port holds the
patches and says what is made of them; the change is made where it is applied. It has no
adapter_config.json of its own, so no other program takes the untreated patch for the port.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portllm.errors import InputError
from portllm.storage.files import read_json, write_json
from portllm.transplant import methods
from portllm.weights import adapters
from portllm.weights.adapters import Adapter

RECIPE = "transplant.json"

ATTACHED = "attached adapter"
MERGED = "merged weights"


@dataclass(frozen=True)
class WeightedPatch:
    """An adapter's directory and the factor with which it is applied."""

    directory: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Port:
    """Patches, and the method that makes of them what is added to a version."""

    patches: tuple[WeightedPatch, ...]
    method: str = "direct"
    parameters: dict[str, float | int] | None = None

    @property
    def dense(self) -> bool:
        """Whether no adapter holds what the method makes."""
        return methods.get(self.method).dense

    def adapters(self) -> list[tuple[Adapter, float]]:
        """The patches' adapters, as a method that is not dense changes them, and their factors."""
        loaded = [(adapters.load(patch.directory), patch.weight) for patch in self.patches]
        if self.dense:
            return loaded
        parameters = self.parameters or {}
        return [
            (adapters.transplanted(adapter, self.method, parameters), weight)
            for adapter, weight in loaded
        ]


def is_dense(directory: Path) -> bool:
    """Whether `directory` holds the port of a dense method."""
    return (directory / RECIPE).is_file()


def how_applied(directory: Path | None) -> str | None:
    """In words, how scoring applies a port or a patch; None where there is none."""
    if directory is None:
        return None
    return MERGED if is_dense(directory) else ATTACHED


def read(directory: Path) -> Port:
    """Read a port; InputError where `directory` holds neither one nor an adapter."""
    if not is_dense(directory):
        adapters.check_directory(directory)
        return Port((WeightedPatch(directory),), "direct", {})
    recipe = read_json(directory / RECIPE)
    try:
        patches = tuple(
            WeightedPatch(directory / entry["directory"], float(entry["weight"]))
            for entry in recipe["patches"]
        )
        kind, parameters = recipe["method"], recipe["parameters"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{directory / RECIPE}: no recipe of a port: expected method, parameters and patches "
            f"({error!r})"
        ) from None
    return Port(patches, kind, methods.check(kind, parameters))


def write(port: Port, directory: Path, *, base: Path) -> None:
    """Write a port for the version `base` into `directory`.

    Raises InputError for several patches where only an adapter could hold them.
    """
    if not port.dense:
        if len(port.patches) > 1 or port.patches[0].weight != 1.0:
            raise InputError(
                "an adapter holds one patch, times one; write the weighted sum with --merged, or "
                "scale a patch with --method scaled"
            )
        adapters.save(port.adapters()[0][0], directory, base=base)
        return
    entries = []
    for index, patch in enumerate(port.patches):
        place = directory / "patches" / str(index)
        place.mkdir(parents=True)
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            shutil.copyfile(patch.directory / name, place / name)
        entries.append({"directory": str(place.relative_to(directory)), "weight": patch.weight})
    recipe = {"method": port.method, "parameters": port.parameters, "patches": entries}
    write_json(directory / RECIPE, recipe)


def wanted(
    directories: Sequence[Path],
    weights: Sequence[float],
    method: str,
    parameters: dict[str, float | int],
) -> Port:
    """The port that a method makes of patches, or one that is there already.

    Raises InputError where something else is wanted of a dense port than to apply it.
    """
    parameters = methods.check(method, parameters)
    given = zip(directories, weights, strict=True)
    if not any(is_dense(directory) for directory in directories):
        return Port(tuple(WeightedPatch(*patch) for patch in given), method, parameters)
    dense = next(directory for directory in directories if is_dense(directory))
    port = read(dense)
    if len(directories) > 1 or method != "direct" or abs(weights[0]) != 1.0:
        raise InputError(
            f"{dense} is a port of method {port.method}, which is applied by itself and as it is; "
            "give its patches instead"
        )
    signed = tuple(
        WeightedPatch(patch.directory, patch.weight * weights[0]) for patch in port.patches
    )
    return Port(signed, port.method, port.parameters)
