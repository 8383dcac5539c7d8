"""LoRA adapters on disk, in PEFT's layout, and whether one fits a checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm import checkpoints, methods
from portllm.errors import InputError, nearest
from portllm.files import read_json, write_json

if TYPE_CHECKING:
    from numpy import ndarray

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Shapes = dict[str, tuple[int, ...]]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.(?P<factor>lora_[AB]|lora_embedding_[AB])(\.weight)?$")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its PEFT configuration and its tensors, in float32, by PEFT's names."""

    config: dict[str, Any]
    tensors: dict[str, "ndarray"]


def load(directory: Path) -> Adapter:
    """Read an adapter; InputError where `directory` holds none that can be used."""
    check_directory(directory)
    return Adapter(read_json(directory / CONFIG), checkpoints.read_arrays(directory / WEIGHTS))


def save(adapter: Adapter, directory: Path, *, base: Path) -> None:
    """Write an adapter for the version `base`, in PEFT's layout."""
    from safetensors.numpy import save_file

    save_file(adapter.tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / CONFIG, {**adapter.config, "base_model_name_or_path": str(base)})


def transplanted(adapter: Adapter, method: str, parameters: dict[str, float | int]) -> Adapter:
    """What a transplant method makes of an adapter. `parameters` are complete."""
    apply = methods.get(method).apply
    tensors = {}
    for weight, parts in factors(list(adapter.tensors)).items():
        names = sorted(parts.values())  # A before B
        a, b = (adapter.tensors[name] for name in names)
        tensors.update(zip(names, apply(weight, a, b, **parameters), strict=True))
    return Adapter(adapter.config, tensors)


def check_directory(directory: Path) -> None:
    """Raise InputError unless `directory` holds a PEFT LoRA adapter in safetensors."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such adapter directory")
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            pickled = (directory / "adapter_model.bin").exists()
            hint = " (adapter_model.bin is a pickle, which is never loaded)" if pickled else ""
            raise InputError(f"{directory}: no {name}, so it is no usable adapter{hint}")
    config = read_json(directory / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{directory / CONFIG}: peft_type is {kind!r}, expected LORA")
    if config.get("use_dora"):
        raise InputError(
            f"{directory / CONFIG}: use_dora is on; DoRA rescales the weights that it was trained "
            "on, so its change is no sum that could be added to other weights"
        )
    if config.get("modules_to_save"):
        modules = ", ".join(config["modules_to_save"])
        raise InputError(
            f"{directory / CONFIG}: modules_to_save holds whole weights ({modules}), which would "
            "replace those of another version instead of adding to them"
        )
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{directory / CONFIG}: bias is {config['bias']!r}; only patches without biases are "
            "supported"
        )


def _is_base_copy(name: str) -> bool:
    # PEFT saves the model's own embedding beside LoRA factors on it. It is no part of the patch:
    # on another version it would put the old embedding back.
    return name.endswith(".base_layer.weight")


def factors(names: list[str]) -> dict[str, dict[str, str]]:
    """Sort adapter tensor names by the weight that they change: weight → factor → name.

    Copies of the model's own weights, which PEFT may have saved, are left out.
    Raises InputError for a tensor that is no factor of a LoRA product.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if _is_base_copy(name):
            continue
        match = _FACTOR.match(name.removeprefix(_PREFIX))
        if match is None:
            raise InputError(
                f"adapter tensor {name} is no LoRA factor; only plain LoRA (lora_A, lora_B) is "
                "supported"
            )
        found.setdefault(f"{match['module']}.weight", {})[match["factor"]] = name
    return found


def changes(shapes: Shapes) -> Shapes:
    """Shape of the change that an adapter makes to each weight of the model.

    `shapes` are those of the adapter's tensors by their PEFT names; A is (rank, in) and B is
    (out, rank), so that B·A has the weight's (out, in).
    """
    result: Shapes = {}
    for weight, parts in factors(list(shapes)).items():
        kinds = {name.rpartition("_")[2]: shapes[tensor] for name, tensor in parts.items()}
        if kinds.keys() != {"A", "B"}:
            raise InputError(f"the adapter has only factor {'/'.join(kinds)} for {weight}")
        if kinds["A"][0] != kinds["B"][1]:
            raise InputError(f"the adapter's factors for {weight} have different ranks")
        out, inner = kinds["B"][0], kinds["A"][1]
        # An embedding's factors are transposed: its weight is (tokens, width).
        embedding = any("embedding" in name for name in parts)
        result[weight] = (inner, out) if embedding else (out, inner)
    return result


def fingerprint(shapes: Shapes, model: Path) -> dict[str, Any]:
    """What a patch must find in any version that it is applied to."""
    return {
        "architecture": checkpoints.architecture(model),
        "tokenizer": checkpoints.tokenizer_hash(model),
        "weights": {name: list(shape) for name, shape in changes(shapes).items()},
    }


def known_fingerprint(directory: Path, shapes: Shapes) -> dict[str, Any]:
    """Fingerprint of a patch that someone brings: its manifest's where it has one.

    Without one, only the weights that it changes are known.
    """
    written = directory / "manifest.json"
    known = read_json(written).get("fingerprint", {}) if written.exists() else {}
    return {**known, "weights": {name: list(shape) for name, shape in changes(shapes).items()}}


def link(source: Path, directory: Path) -> None:
    """Fill `directory` with links to the files of a local adapter, which are not copied."""
    check_directory(source)
    for name in (CONFIG, WEIGHTS):
        (directory / name).symlink_to((source / name).resolve())


def adapter_shapes(directory: Path) -> Shapes:
    """Shapes of an adapter's tensors, from the header alone."""
    header = checkpoints.read_header(directory / WEIGHTS)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _check_shapes(adapter: Path, model: Path) -> None:
    available = checkpoints.shapes(model)
    for weight, shape in changes(adapter_shapes(adapter)).items():
        if weight not in available:
            raise InputError(
                f"{adapter} does not fit {model}: it changes {weight}, which the model does not "
                f"have; {nearest(weight, available)}"
            )
        if available[weight] != shape:
            raise InputError(
                f"{adapter} does not fit {model}: it changes {weight} of shape {list(shape)}, "
                f"which has shape {list(available[weight])} there"
            )


def check_fit(adapter: Path, model: Path, *, allow_other_tokenizer: bool = False) -> None:
    """Raise InputError, naming the first mismatch, unless the adapter fits the checkpoint.

    Only headers and small JSON files are read. Architecture and tokenizer are compared where the
    adapter's manifest tells what it was trained on.
    """
    check_directory(adapter)
    checkpoints.check_directory(model, "model")
    manifest = adapter / "manifest.json"
    trained_on = read_json(manifest).get("fingerprint", {}) if manifest.exists() else {}
    here = checkpoints.architecture(model)
    there = trained_on.get("architecture", here)
    if there != here:
        raise InputError(f"{adapter} does not fit {model}: trained on {there}, this is {here}")
    _check_shapes(adapter, model)
    tokenizer = trained_on.get("tokenizer")
    differs = tokenizer is not None and tokenizer != checkpoints.tokenizer_hash(model)
    if differs and not allow_other_tokenizer:
        raise InputError(
            f"{adapter} does not fit {model}: its tokenizer has another vocabulary than the one "
            "that the patch was trained with (--allow-other-tokenizer ports it all the same)"
        )
