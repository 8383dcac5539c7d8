"""Model checkpoints on disk: configuration, index and safetensors shards, without a model class."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, shown
from portllm.storage.files import check_object, hash_file, read_json, read_object
from portllm.weights.safetensors_file import SafetensorsFile, Shapes

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
VOCABULARIES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files with the vocabulary of a tokenizer that has no tokenizer.json."""
HEAD = "lm_head.weight"
"""The output layer of causal language models. A checkpoint with tied weights does not store it."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def check_directory(directory: Path, place: str) -> None:
    """Raise InputError unless `directory` holds a configuration and safetensors weights.

    `place` starts the message: the option or the configuration key that names the directory.
    """
    if not directory.is_dir():
        raise InputError(f"{place}: no such directory: {directory}")
    if not (directory / CONFIG).is_file():
        raise InputError(f"{place}: {directory} has no {CONFIG}, so it is not a model")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f" ({pickled[0]} is a pickle, which is never loaded)" if pickled else ""
        raise InputError(f"{place}: {directory} has no weights in *.safetensors{hint}")


def _check_index(index: Any, path: Path) -> None:
    if not isinstance(index, dict) or "weight_map" not in index:
        raise InputError(f"{path}: found {shown(index)}, expected an object with weight_map")
    weight_map = index["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{path}: weight_map: found {shown(weight_map)}, expected an object that maps weights "
            "to files"
        )
    for weight, name in weight_map.items():
        # Another directory's weights would be read, and the merged copy's index would name them.
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise InputError(
                f"{path}: weight_map.{weight}: found {name!r:.300}, expected the name of a file in "
                "the same directory"
            )
    check_object(index, str(path), metadata=(dict, type(None)))


class Checkpoint:
    """A checkpoint directory. Each of its files is read when first needed, and only once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, place: str = "model") -> "Checkpoint":
        """Open the checkpoint in a directory.

        Raises InputError, which starts with `place`, for a directory without configuration or
        weights.
        """
        check_directory(directory, place)
        return cls(directory)

    def __str__(self) -> str:
        return str(self.directory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        path = self.directory / CONFIG
        config = read_object(path, model_type=str, architectures=(list, type(None)))
        for name in config.get("architectures") or ():
            if not isinstance(name, str):
                raise InputError(f"{path}: architectures: found {shown(name)}, expected a text")
        return config

    @cached_property
    def index(self) -> dict[str, Any] | None:
        """The index of a checkpoint in several shards; None if there is no index.

        Raises InputError unless it maps weights to files in the checkpoint's own directory.
        """
        path = self.directory / INDEX
        if not path.exists():
            return None
        index = read_json(path)
        _check_index(index, path)
        return index

    @cached_property
    def shard_paths(self) -> list[Path]:
        """The weight files in order.

        Raises InputError if there are none, or several without an index, or if the index names a
        file that is missing.
        """
        if self.index is not None:
            names = sorted(set(self.index["weight_map"].values()))
            for name in names:
                if not (self.directory / name).exists():
                    raise InputError(
                        f"{self.directory}: shard {name}, which {INDEX} names, is missing"
                    )
            return [self.directory / name for name in names]
        paths = sorted(self.directory.glob("model*.safetensors"))
        if not paths:
            raise InputError(f"{self.directory}: no weights in *.safetensors")
        if len(paths) > 1:  # which transformers does not load either
            raise InputError(
                f"{self.directory}: found {len(paths)} files of weights, but no {INDEX} that says "
                "what is in which"
            )
        return paths

    @cached_property
    def shards(self) -> tuple[SafetensorsFile, ...]:
        """The opened weight files in order; raises InputError as `SafetensorsFile.open` does."""
        return tuple(map(SafetensorsFile.open, self.shard_paths))

    @cached_property
    def shard_of(self) -> dict[str, SafetensorsFile]:
        """The shard that holds each weight, by the weight's name.

        Raises InputError where the index names a weight that no shard holds.
        """
        shard_of = {tensor.name: shard for shard in self.shards for tensor in shard.tensors}
        for weight, name in (self.index or {}).get("weight_map", {}).items():
            if weight not in shard_of:
                raise InputError(
                    f"{self.directory / INDEX}: weight_map.{weight}: found {name!r}, which does "
                    "not hold it"
                )
        return shard_of

    @cached_property
    def shapes(self) -> Shapes:
        """Shape of every weight, by name."""
        return {name: shape for shard in self.shards for name, shape in shard.shapes.items()}

    def check_layers(self) -> None:
        """Raise InputError if the configuration has more layers than the checkpoint has tensors.

        transformers builds all layers before it reads the weights, in unlimited time and memory.
        """
        layers = self.config.get("num_hidden_layers")
        if isinstance(layers, int) and layers > len(self.shapes):
            raise InputError(
                f"{self.directory / CONFIG}: num_hidden_layers: found {shown(layers)}, expected at "
                f"most {len(self.shapes)}, the number of tensors"
            )

    def check_chat_template(self) -> None:
        """Raise InputError if the tokenizer has no chat template."""
        tokenizer = self.directory / "tokenizer_config.json"
        stated = read_object(tokenizer).get("chat_template") if tokenizer.exists() else None
        if not stated and not (self.directory / "chat_template.jinja").exists():
            raise InputError(
                f"{self.directory}: the tokenizer has no chat template; use a chat model, or set "
                "chat_template: false"
            )

    def read(self, name: str) -> "Tensor":
        """Read one weight; the shard is memory-mapped, not loaded."""
        return self.shard_of[name].read_tensor(name)

    def tensors(self) -> Iterator[tuple[str, "Tensor"]]:
        """Yield the name and values of each weight, read one at a time."""
        for name in self.shard_of:
            yield name, self.read(name)

    @property
    def architecture(self) -> str:
        """The model's architecture, as config.json names it."""
        default = self.config.get("model_type", "unknown")
        return next(iter(self.config.get("architectures") or []), default)

    @cached_property
    def tied_embedding(self) -> str | None:
        """The embedding that also serves as the output layer; None where the two are separate.

        A causal model whose checkpoint has no output layer uses its embedding, whether or not the
        configuration says so.
        """
        is_causal = self.architecture.endswith(("ForCausalLM", "LMHeadModel"))
        if HEAD in self.shard_of or not is_causal:
            return None
        return next((name for name in self.shard_of if name.endswith(_EMBEDDINGS)), None)

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """SHA-256 of the tokenizer's vocabulary; None if there is no tokenizer.

        Without a tokenizer.json, the hash is of another vocabulary file, and starts with its name.
        """
        path = self.directory / TOKENIZER
        if path.exists():
            model = read_object(path, model=dict).get("model", {})
            vocabulary = model.get("vocab")
            return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
        other = next((name for name in VOCABULARIES if (self.directory / name).is_file()), None)
        return other and f"{other}:{hash_file(self.directory / other)}"


def have_equal_weights(first: Checkpoint, second: Checkpoint) -> bool:
    """Return whether two checkpoints have equal weights; reads up to the first that differs."""
    import torch

    return first.shapes == second.shapes and all(
        torch.equal(first.read(name).float(), second.read(name).float()) for name in first.shard_of
    )
