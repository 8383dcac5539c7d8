"""Model checkpoints on disk: their safetensors shards, read without a model class."""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError
from portllm.storage.files import read_json

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"
HEAD = "lm_head.weight"
"""The output layer of causal language models; absent from a checkpoint where it is tied."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def check_directory(directory: Path, place: str) -> None:
    """Raise InputError unless `directory` holds a configuration and safetensors weights."""
    if not directory.is_dir():
        raise InputError(f"{place}: no such directory: {directory}")
    if not (directory / "config.json").is_file():
        raise InputError(f"{place}: {directory} has no config.json, so it is no model")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f" ({pickled[0]} is a pickle, which is never loaded)" if pickled else ""
        raise InputError(f"{place}: {directory} has no weights in *.safetensors{hint}")


def shards(directory: Path) -> list[Path]:
    """The checkpoint's weight files, in order.

    Raises InputError where there are none, or one that the index names is missing.
    """
    index = directory / INDEX
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            if not (directory / name).exists():
                raise InputError(f"{directory}: shard {name}, which {INDEX} names, is missing")
        return [directory / name for name in names]
    found = sorted(directory.glob("model*.safetensors"))
    if not found:
        raise InputError(f"{directory}: no weights in *.safetensors")
    return found


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: per tensor its dtype, shape and data offsets.

    Raises InputError where the file is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise InputError(f"{path}: cut off, its header is not whole")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise InputError(f"{path}: damaged, its header is not JSON") from None
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != METADATA]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise InputError(f"{path}: cut off: {size} bytes, expected {expected}")
    return header


def header_length(path: Path) -> int:
    """Bytes before a safetensors file's first tensor: the header and its own length."""
    with path.open("rb") as file:
        return 8 + struct.unpack("<Q", file.read(8))[0]


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; `begin` and `end` are bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def stored(shard: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order in which they lie there."""
    start = header_length(shard)
    found = [
        Stored(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            *(start + at for at in entry["data_offsets"]),
        )
        for name, entry in read_header(shard).items()
        if name != METADATA
    ]
    return sorted(found, key=lambda tensor: (tensor.begin, tensor.end))


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by name, from the headers alone."""
    return {
        name: tuple(entry["shape"])
        for shard in shards(directory)
        for name, entry in read_header(shard).items()
        if name != METADATA
    }


def tied_embedding(directory: Path, names: Iterable[str]) -> str | None:
    """The embedding that is the output layer's weight as well; None where each has its own.

    `names` are the checkpoint's weights. A causal model whose checkpoint has no output layer uses
    its embedding, whatever its configuration leaves unsaid.
    """
    names = list(names)
    if HEAD in names or not architecture(directory).endswith(("ForCausalLM", "LMHeadModel")):
        return None
    return next((name for name in names if name.endswith(_EMBEDDINGS)), None)


def locations(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name of each weight and the shard that holds it, in the shards' order."""
    for shard in shards(directory):
        for name in read_header(shard):
            if name != METADATA:
                yield name, shard


def read_tensor(shard: Path, name: str) -> "Tensor":
    """Read one weight; the shard is mapped, not loaded."""
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return file.get_tensor(name)


def read_arrays(path: Path) -> "dict[str, ndarray]":
    """Read a small safetensors file, such as an adapter's, as float32 arrays by name.

    Raises InputError where it is cut off or holds numbers that are no floats.
    """
    import numpy

    from portllm.weights import dtypes

    header = read_header(path)
    start = header_length(path)
    content = numpy.fromfile(path, numpy.uint8, offset=start)
    arrays = {}
    for name, entry in header.items():
        if name == METADATA:
            continue
        if entry["dtype"] not in dtypes.STORED:
            raise InputError(f"{path}: {name} is {entry['dtype']}, {dtypes.EXPECTED}")
        begin, end = entry["data_offsets"]
        stored = content[begin:end].view(dtypes.STORED[entry["dtype"]])
        wide = dtypes.widened(stored, entry["dtype"]).astype(numpy.float32, copy=False)
        arrays[name] = wide.reshape(entry["shape"])
    return arrays


def tensors(directory: Path) -> Iterator[tuple[str, "Tensor"]]:
    """Name and values of each weight, one at a time."""
    for name, shard in locations(directory):
        yield name, read_tensor(shard, name)


def architecture(directory: Path) -> str:
    """The model's architecture, as its config.json names it."""
    config = read_json(directory / "config.json")
    return next(iter(config.get("architectures") or []), config.get("model_type", "unknown"))


def tokenizer_hash(directory: Path) -> str | None:
    """SHA-256 of the tokenizer's vocabulary; None where there is no tokenizer.json."""
    path = directory / "tokenizer.json"
    if not path.exists():
        return None
    vocabulary = read_json(path)["model"].get("vocab")
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
