"""LoRA adapters on disk, in PEFT's layout, and whether one fits a checkpoint."""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, nearest
from portllm.storage.files import read_json, write_json
from portllm.transplant import methods
from portllm.weights import checkpoints

if TYPE_CHECKING:
    from numpy import ndarray

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Shapes = dict[str, tuple[int, ...]]

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<factor>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(\.weight)?$"
)
WHOLE = "whole"
MAGNITUDE = "lora_magnitude_vector"

# PEFT's options that make of an adapter something else than a sum, a rescaling or a replacement
# of weights, and why that cannot be put into weights.
_REFUSED = {
    "lora_bias": "its factors have biases of their own",
    "trainable_token_indices": "it holds single rows of the embedding (trainable tokens)",
    "target_parameters": "it changes parameters that are no layer's weight",
    "layer_replication": "it makes a deeper model of the one that it was trained on",
    "alora_invocation_tokens": "it acts on the tokens after its invocation only",
    "use_qalora": "it pools its inputs by groups",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between several adapters",
    "monteclora_config": "it samples its factors",
}
# With these, PEFT takes a part out of the base's weights before it trains.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its PEFT configuration and its tensors, in float32, by PEFT's names."""

    config: dict[str, Any]
    tensors: dict[str, "ndarray"]


def load(directory: Path) -> Adapter:
    """Read an adapter; InputError where `directory` holds none that can be used."""
    directory_changes(directory)
    return Adapter(read_json(directory / CONFIG), checkpoints.read_arrays(directory / WEIGHTS))


def save(adapter: Adapter, directory: Path, *, base: Path) -> None:
    """Write an adapter for the version `base`, in PEFT's layout."""
    from safetensors.numpy import save_file

    save_file(adapter.tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / CONFIG, {**adapter.config, "base_model_name_or_path": str(base)})


def sort_targets(directory: Path) -> None:
    """Give an adapter's target modules one order: PEFT writes a set, in another order each time."""
    config = read_json(directory / CONFIG)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
        write_json(directory / CONFIG, config)


def is_sum(adapter: Adapter) -> bool:
    """Whether all that an adapter does is to add B·A to weights."""
    parts = factors(list(adapter.tensors)).values()
    return not any(WHOLE in kinds or MAGNITUDE in kinds for kinds in parts)


def transplanted(adapter: Adapter, method: str, parameters: dict[str, float | int]) -> Adapter:
    """What a transplant method makes of an adapter. `parameters` are complete.

    Raises InputError where the method's result is no adapter, or it changes a sum and the adapter
    is none.
    """
    if methods.get(method).dense:
        raise InputError(f"what method {method} makes of a patch is no adapter")
    apply = methods.get(method).apply
    if method != "direct" and not is_sum(adapter):
        raise InputError(
            f"method {method} changes the sum that a patch adds; with DoRA or modules_to_save a "
            "patch is no sum, so only direct applies it"
        )
    tensors = {}
    for weight, parts in factors(list(adapter.tensors)).items():
        kept = {name: adapter.tensors[name] for name in parts.values()}
        both = pair(parts)
        if both is not None:
            a, b = (adapter.tensors[name] for name in both)
            kept.update(zip(both, apply(weight, a, b, **parameters), strict=True))
        tensors.update(kept)
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
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{directory / CONFIG}: bias is {config['bias']!r}; only patches without biases are "
            "supported"
        )
    for option, reason in _REFUSED.items():
        if config.get(option):
            raise InputError(
                f"{directory / CONFIG}: {option} is set: {reason}; expected plain LoRA"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise InputError(
            f"{directory / CONFIG}: init_lora_weights is {start!r}: it was trained on a base whose "
            "weights PEFT had changed; convert it to plain LoRA (PEFT's save_pretrained does, with "
            "path_initial_model_for_weight_conversion)"
        )


def _is_base_copy(name: str) -> bool:
    # PEFT saves the model's own embedding beside LoRA factors on it. It is no part of the patch:
    # on another version it would put the old embedding back.
    return name.endswith(".base_layer.weight")


def factors(names: list[str]) -> dict[str, dict[str, str]]:
    """Sort adapter tensor names by the weight that they change: weight → factor → name.

    A factor is lora_A, lora_B, lora_embedding_A, lora_embedding_B, lora_magnitude_vector (DoRA) or
    `whole`, a weight of `modules_to_save`, which takes the place of the model's. Copies of the
    model's own weights, which PEFT may have saved, are left out.
    Raises InputError for a tensor that is none of these.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if _is_base_copy(name):
            continue
        match = _FACTOR.match(name.removeprefix(_PREFIX))
        if match is not None:
            found.setdefault(f"{match['module']}.weight", {})[match["factor"]] = name
        elif name.endswith((".weight", ".bias")) and "lora_" not in name:
            found.setdefault(name.removeprefix(_PREFIX), {})[WHOLE] = name
        else:
            raise InputError(
                f"adapter tensor {name} is no LoRA factor; only LoRA (lora_A, lora_B), DoRA and "
                "modules_to_save are supported"
            )
    return found


def pair(parts: dict[str, str]) -> tuple[str, str] | None:
    """Names of the tensors A and B among a weight's factors; None where there are none."""
    for kind in ("lora", "lora_embedding"):
        if f"{kind}_A" in parts:
            return parts[f"{kind}_A"], parts[f"{kind}_B"]
    return None


def _check_parts(weight: str, parts: dict[str, str], shapes: Shapes) -> None:
    kinds = {kind.rpartition("_")[2] for kind in parts if kind not in (WHOLE, MAGNITUDE)}
    if len(kinds) == 1 or (MAGNITUDE in parts and not kinds):
        present = "/".join(kinds) or MAGNITUDE
        raise InputError(f"the adapter has only factor {present} for {weight}")
    both = pair(parts)
    if both is None:
        return
    a, b = (shapes[name] for name in both)
    if len(a) != 2 or len(b) != 2:
        raise InputError(
            f"the adapter's factors for {weight} are no matrices, so no linear layer's"
        )
    if a[0] != b[1]:
        raise InputError(f"the adapter's factors for {weight} have different ranks")
    if MAGNITUDE in parts and ("lora_embedding_A" in parts or shapes[parts[MAGNITUDE]] != (b[0],)):
        raise InputError(f"DoRA on {weight}: only DoRA of linear layers is supported")


def changes(shapes: Shapes, *, fan_in_fan_out: bool = False) -> Shapes:
    """Shape of each weight of the model that an adapter changes.

    `shapes` are those of the adapter's tensors by their PEFT names; A is (rank, in) and B is
    (out, rank), so that B·A is (out, in). An embedding's weight, and a linear layer's where
    `fan_in_fan_out` says so, has its transpose's shape.
    """
    result: Shapes = {}
    for weight, parts in factors(list(shapes)).items():
        _check_parts(weight, parts, shapes)
        both = pair(parts)
        if both is None:
            result[weight] = shapes[parts[WHOLE]]
            continue
        out, inner = shapes[both[1]][0], shapes[both[0]][1]
        transposed = fan_in_fan_out or "lora_embedding_A" in parts
        result[weight] = (inner, out) if transposed else (out, inner)
    return result


def _is_named(weight: str, modules: list[str]) -> bool:
    # As PEFT names modules: by how their path ends. A module may hold the weight further down.
    parents = list(accumulate(weight.split(".")[:-1], "{}.{}".format))
    return any(parent.endswith(module) for parent in parents for module in modules)


def directory_changes(directory: Path) -> Shapes:
    """Shape of each weight that an adapter changes, from its header alone.

    Raises InputError where `directory` holds no adapter that can be used.
    """
    check_directory(directory)
    config, shapes = read_json(directory / CONFIG), adapter_shapes(directory)
    saved = config.get("modules_to_save") or []
    for weight, parts in factors(list(shapes)).items():
        # PEFT may save an embedding unasked; on another version it would put the old one back.
        if WHOLE in parts and not _is_named(weight, saved):
            raise InputError(
                f"{directory / WEIGHTS}: {parts[WHOLE]} is a whole weight that modules_to_save in "
                f"{CONFIG} does not name"
            )
    return changes(shapes, fan_in_fan_out=bool(config.get("fan_in_fan_out")))


def fingerprint(changed: Shapes, model: Path) -> dict[str, Any]:
    """What a patch must find in any version that it is applied to.

    `changed` is the shape of each weight that it changes.
    """
    return {
        "architecture": checkpoints.architecture(model),
        "tokenizer": checkpoints.tokenizer_hash(model),
        "weights": {name: list(shape) for name, shape in changed.items()},
    }


def known_fingerprint(directory: Path) -> dict[str, Any]:
    """Fingerprint of a patch that someone brings: its manifest's where it has one.

    Without one, only the weights that it changes are known.
    """
    written = directory / "manifest.json"
    known = read_json(written).get("fingerprint", {}) if written.exists() else {}
    changed = directory_changes(directory)
    return {**known, "weights": {name: list(shape) for name, shape in changed.items()}}


def link(source: Path, directory: Path) -> None:
    """Fill `directory` with links to the files of a local adapter, which are not copied."""
    check_directory(source)
    for name in (CONFIG, WEIGHTS):
        (directory / name).symlink_to((source / name).resolve())


def adapter_shapes(directory: Path) -> Shapes:
    """Shapes of an adapter's tensors, from the header alone."""
    header = checkpoints.read_header(directory / WEIGHTS)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _check_shapes(adapter: Path, changed: Shapes, model: Path) -> None:
    available = checkpoints.shapes(model)
    embedding = checkpoints.tied_embedding(model, available)
    if embedding is not None:
        available[checkpoints.HEAD] = available[embedding]
    for weight, shape in changed.items():
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
    changed = directory_changes(adapter)
    checkpoints.check_directory(model, "model")
    manifest = adapter / "manifest.json"
    trained_on = read_json(manifest).get("fingerprint", {}) if manifest.exists() else {}
    here = checkpoints.architecture(model)
    there = trained_on.get("architecture", here)
    if there != here:
        raise InputError(f"{adapter} does not fit {model}: trained on {there}, this is {here}")
    _check_shapes(adapter, changed, model)
    tokenizer = trained_on.get("tokenizer")
    differs = tokenizer is not None and tokenizer != checkpoints.tokenizer_hash(model)
    if differs and not allow_other_tokenizer:
        raise InputError(
            f"{adapter} does not fit {model}: its tokenizer has another vocabulary than the one "
            "that the patch was trained with (--allow-other-tokenizer ports it all the same)"
        )
