"""LoRA adapters on disk in PEFT's layout, and whether an adapter fits a checkpoint."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, shown
from portllm.storage.files import check_object, read_object, write_json
from portllm.weights import checkpoints, finite, module_patterns
from portllm.weights.checkpoints import Checkpoint
from portllm.weights.safetensors_file import SafetensorsFile, Shapes

if TYPE_CHECKING:
    from numpy import ndarray

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(\.weight)?"
)
WHOLE = "whole"
MAGNITUDE = "lora_magnitude_vector"

# PEFT options under which an adapter is not a sum, a rescaling or a replacement of weights, and
# why such an adapter cannot be merged into weights.
_REFUSED = {
    "lora_bias": "its factors have biases of their own",
    "trainable_token_indices": "it holds single rows of the embedding (trainable tokens)",
    "target_parameters": "it changes parameters that are not the weight of a layer",
    "layer_replication": "it builds a deeper model from the one that it was trained on",
    "alora_invocation_tokens": "it acts only on the tokens after its invocation",
    "use_qalora": "it pools its inputs by groups",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between several adapters",
    "monteclora_config": "it samples its factors",
}
_DEFAULTS = {"r": 8, "lora_alpha": 8}
"""PEFT's, for configurations without these keys."""

_NONE = type(None)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "base_model_name_or_path": (str, _NONE),
    "bias": str,
    "fan_in_fan_out": (bool, _NONE),  # Axolotl writes null
    "use_rslora": bool,
    "use_dora": bool,
    "lora_dropout": (int, float),
    "rank_pattern": (dict, _NONE),
    "alpha_pattern": (dict, _NONE),
    "target_modules": (str, list, _NONE),
    "exclude_modules": (str, list, _NONE),
    "modules_to_save": (list, _NONE),
    "layers_pattern": (str, list, _NONE),
}
"""As in PEFT, for the keys that are used here or matched with module names."""

# With these, PEFT subtracts a part of the base's weights before it trains.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in memory: PEFT's configuration, and float32 tensors by PEFT's names."""

    config: dict[str, Any]
    tensors: dict[str, "ndarray"]


class StoredAdapter:
    """An adapter directory in PEFT's layout. Each of its files is opened when first needed."""

    def __init__(self, directory: Path) -> None:
        """Raises InputError unless `directory` holds a usable PEFT LoRA adapter in safetensors."""
        if not directory.is_dir():
            raise InputError(f"{directory}: no such adapter directory")
        for name in (CONFIG, WEIGHTS):
            if not (directory / name).is_file():
                pickled = (directory / "adapter_model.bin").exists()
                hint = " (adapter_model.bin is a pickle, which is never loaded)" if pickled else ""
                raise InputError(f"{directory}: no {name}, so it is not a usable adapter{hint}")
        self.directory = directory
        self.config = read_object(directory / CONFIG)
        _check_config(self.config, directory / CONFIG)

    def __str__(self) -> str:
        return str(self.directory)

    @cached_property
    def file(self) -> SafetensorsFile:
        """The opened weights."""
        return SafetensorsFile.open(self.directory / WEIGHTS)

    @cached_property
    def changed_shapes(self) -> Shapes:
        """Shape of each weight that the adapter changes, from its header alone.

        Raises InputError for tensors that cannot be used.
        """
        shapes = self.file.shapes
        path = self.directory / WEIGHTS
        saved = self.config.get("modules_to_save") or []
        for weight, parts in factors(list(shapes)).items():
            # PEFT may save an embedding unasked; on another version it would put the old one back.
            if WHOLE in parts and not _is_named(weight, saved):
                raise InputError(
                    f"{path}: {parts[WHOLE]} is a whole weight that "
                    f"modules_to_save in {CONFIG} does not name"
                )
        changed = _changed_shapes(shapes, fan_in_fan_out=bool(self.config.get("fan_in_fan_out")))
        if not changed:
            raise InputError(f"{path}: found no LoRA factors, expected lora_A and lora_B of layers")
        self.check_patterns(changed)
        self._check_ranks(shapes)
        return changed

    def check_patterns(self, weights: Iterable[str]) -> None:
        """Raise InputError if patterns of the configuration take too long to match weights."""
        modules = (weight.removesuffix(".weight") for weight in weights)
        module_patterns.check(self.config, modules, self.directory / CONFIG)

    def _check_ranks(self, shapes: Shapes) -> None:
        # The scale divides by the rank, and PEFT refuses tensors of another rank than configured.
        for weight, parts in factors(list(shapes)).items():
            both = pair(parts)
            if both is None:
                continue
            name, module = both[0], weight.removesuffix(".weight")
            expected = value_for_module(self.config, "r", "rank_pattern", module)
            if shapes[name][0] != expected or expected < 1:
                raise InputError(
                    f"{self.directory / WEIGHTS}: {name}: found rank {shapes[name][0]}, expected "
                    f"{expected} (r or rank_pattern in {CONFIG}), at least 1"
                )

    @cached_property
    def known_fingerprint(self) -> dict[str, Any]:
        """The fingerprint in the adapter's manifest; empty if it has none."""
        path = self.directory / MANIFEST
        if not path.exists():
            return {}
        fingerprint = read_object(path, fingerprint=dict).get("fingerprint", {})
        check_object(fingerprint, f"{path}: fingerprint", architecture=str, tokenizer=(str, _NONE))
        return fingerprint

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """SHA-256 of the vocabulary that the adapter was trained with; None if it is not known.

        Taken from its manifest, else from a tokenizer.json in its directory, else from the model
        that its configuration names, where that is a directory here.
        """
        if tokenizer := self.known_fingerprint.get("tokenizer"):
            return tokenizer
        base = self.config.get("base_model_name_or_path") or ""
        places = [self.directory, *([Path(base)] if base and Path(base).is_dir() else [])]
        return next(filter(None, (Checkpoint(place).tokenizer_hash for place in places)), None)

    def fingerprint(self, model: Checkpoint | None = None) -> dict[str, Any]:
        """Return what the adapter requires of a version, for its manifest.

        `model` is the model that it was trained on. Without one, architecture and tokenizer are
        taken from the adapter's own manifest where it has one.
        """
        known = {**self.known_fingerprint, "tokenizer": self.tokenizer_hash}
        known = {name: value for name, value in known.items() if value is not None}
        if model is not None:
            known = {"architecture": model.architecture, "tokenizer": model.tokenizer_hash}
        return {
            **known,
            "weights": {name: list(shape) for name, shape in self.changed_shapes.items()},
        }

    def load(self) -> Adapter:
        """Read the tensors; raises InputError for tensors that cannot be used or are not finite."""
        _ = self.changed_shapes
        self.file.validate()
        tensors = self.file.read_arrays()
        for name, tensor in tensors.items():
            finite.check_array(tensor, f"{self.file.path}: {name}")
        return Adapter(self.config, tensors)


def load(directory: Path) -> Adapter:
    """Read an adapter; raises InputError for a directory without a usable one."""
    return StoredAdapter(directory).load()


def save(
    adapter: Adapter, directory: Path, *, base: Path | str, revision: str | None = None
) -> None:
    """Write an adapter in PEFT's layout, for the version `base`: a directory or a hub id.

    `revision` is the commit of a base on the hub, which PEFT then loads.
    """
    from safetensors.numpy import save_file

    for name, tensor in adapter.tensors.items():
        finite.check_array(tensor, f"{name}, after the transplant method")
    save_file(adapter.tensors, directory / WEIGHTS, metadata={"format": "pt"})
    pinned = {"revision": revision} if revision else {}
    config = {**adapter.config, "base_model_name_or_path": str(base), **pinned}
    write_json(directory / CONFIG, config)


def sort_targets(directory: Path) -> None:
    """Sort an adapter's target modules, because PEFT writes a set in random order."""
    config = read_object(directory / CONFIG)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
        write_json(directory / CONFIG, config)


def link(source: Path, directory: Path) -> None:
    """Fill `directory` with symbolic links to the files of a local adapter."""
    StoredAdapter(source)
    optional = [name for name in (checkpoints.TOKENIZER,) if (source / name).is_file()]
    for name in (CONFIG, WEIGHTS, *optional):
        (directory / name).symlink_to((source / name).resolve())


def value_for_module(config: dict[str, Any], key: str, patterns: str, module: str) -> float:
    """Return the value of `key` for a module, from `patterns` if one of them matches.

    As in PEFT, a pattern is a regular expression for the end of the module's name.
    """
    default = config.get(key, _DEFAULTS[key])
    return module_patterns.value(config, patterns, module, default)


def is_sum(adapter: Adapter) -> bool:
    """Whether the adapter does nothing but add B·A to weights."""
    parts = factors(list(adapter.tensors)).values()
    return not any(WHOLE in kinds or MAGNITUDE in kinds for kinds in parts)


def _check_config(config: dict[str, Any], path: Path) -> None:
    check_object(config, str(path), **_TYPES)
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        items = config.get(name) or ()
        if not all(isinstance(item, str) for item in items):
            raise InputError(f"{path}: {name}: found {shown(items)}, expected texts")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: found peft_type {kind!r}, expected LORA")
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{path}: found bias {config['bias']!r}, expected 'none': trained biases are not "
            "supported"
        )
    for option, reason in _REFUSED.items():
        if config.get(option):
            raise InputError(f"{path}: {option} is set: {reason}; expected plain LoRA")
    module_patterns.check(config, (), path)
    for name, value in _numbers_of_config(config):
        finite.check_number(value, f"{path}: {name}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {start!r}: it was trained on a base whose weights PEFT "
            "had changed; convert it to plain LoRA (PEFT's save_pretrained does, with "
            "path_initial_model_for_weight_conversion)"
        )


def _numbers_of_config(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the numbers that decide ranks and scales, with their keys."""
    yield from ((name, config[name]) for name in ("r", "lora_alpha") if name in config)
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (config.get(name) or {}).items():
            yield f"{name}.{pattern}", value


def _is_base_copy(name: str) -> bool:
    # PEFT saves the model's own embedding next to LoRA factors on it. It is not part of the patch:
    # on another version it would put the old embedding back.
    return name.endswith(".base_layer.weight")


def factors(names: list[str]) -> dict[str, dict[str, str]]:
    """Group adapter tensor names by the weight that they change: weight → factor → name.

    A factor is lora_A, lora_B, lora_embedding_A, lora_embedding_B, lora_magnitude_vector (DoRA) or
    `whole`, a weight of `modules_to_save` that replaces the model's. Copies of the model's own
    weights, which PEFT may have saved, are left out.

    Raises:
        InputError: for any other tensor.

    """
    by_weight: dict[str, dict[str, str]] = {}
    for name in names:
        if _is_base_copy(name):
            continue
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match is not None:
            by_weight.setdefault(f"{match['module']}.weight", {})[match["factor"]] = name
        elif name.endswith((".weight", ".bias")) and "lora_" not in name:
            by_weight.setdefault(name.removeprefix(_PREFIX), {})[WHOLE] = name
        else:
            raise InputError(
                f"adapter tensor {name} is not a LoRA factor; only LoRA (lora_A, lora_B), DoRA and "
                "modules_to_save are supported"
            )
    return by_weight


def pair(parts: dict[str, str]) -> tuple[str, str] | None:
    """Return the names of tensors A and B among a weight's factors; None if it has neither."""
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
            f"the adapter's factors for {weight} are not matrices; only linear layers and "
            "embeddings are supported"
        )
    if a[0] != b[1]:
        raise InputError(f"the adapter's factors for {weight} have different ranks")
    if MAGNITUDE in parts and ("lora_embedding_A" in parts or shapes[parts[MAGNITUDE]] != (b[0],)):
        raise InputError(f"DoRA on {weight}: only DoRA of linear layers is supported")


def _changed_shapes(shapes: Shapes, *, fan_in_fan_out: bool = False) -> Shapes:
    """Return the shape of each weight of the model that an adapter changes.

    Args:
        shapes: shapes of the adapter's tensors by their PEFT names. A is (rank, in) and B is
            (out, rank), so B·A is (out, in).
        fan_in_fan_out: whether linear layers store their weight transposed, as embeddings do.

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
    # PEFT names a module by the end of its path. The module may hold the weight further down.
    parents = list(accumulate(weight.split(".")[:-1], "{}.{}".format))
    return any(parent.endswith(module) for parent in parents for module in modules)
