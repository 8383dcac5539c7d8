"""One safetensors file: its header, read once, and the tensors behind it."""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

METADATA = "__metadata__"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `begin` and `end` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


def _is_entry(entry: Any) -> bool:
    """Whether a value of a header describes a tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    sizes = (*shape, *offsets)
    return all(type(size) is int and size >= 0 for size in sizes) and offsets[0] <= offsets[1]


@dataclass(frozen=True)
class SafetensorsFile:
    """An opened safetensors file.

    `size` is the file's length in bytes, `header` the bytes before the first tensor, their own
    eight-byte length included.
    """

    path: Path
    size: int
    header: bytes

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Read and check the header; raises InputError for a truncated or damaged file."""
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if 8 + length > size:
                raise InputError(f"{path}: truncated in its header")
            opened = cls(path, size, prefix + file.read(length))
        opened._check_entries()
        ends = [entry["data_offsets"][1] for entry in opened.entries.values()]
        expected = len(opened.header) + max(ends, default=0)
        if size != expected:
            raise InputError(f"{path}: truncated: found {size} bytes, expected {expected}")
        return opened

    def _check_entries(self) -> None:
        if not isinstance(self.parsed_header, dict):
            raise InputError(f"{self.path}: damaged: its header is not an object")
        for name, entry in self.entries.items():
            if not _is_entry(entry):
                raise InputError(
                    f"{self.path}: damaged: {name}: found {entry!r:.80}, expected dtype, shape and "
                    "data_offsets"
                )
        end = 0
        for tensor in self.tensors:
            begin = tensor.begin - len(self.header)
            if begin != end:
                raise InputError(
                    f"{self.path}: damaged: {tensor.name}: found data_offsets from {begin}, "
                    f"expected {end}, the end of the tensor before"
                )
            end = begin + tensor.size

    def validate(self) -> None:
        """Have the safetensors library check the file, as those that load it will.

        Raises InputError for what it refuses, such as a shape that does not match the offsets.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(f"{self.path}: damaged: {error}") from None

    @cached_property
    def parsed_header(self) -> dict[str, Any]:
        """The header as JSON: dtype, shape and data offsets per tensor, and the metadata."""
        try:
            return json.loads(self.header[8:])
        except (ValueError, RecursionError):
            raise InputError(f"{self.path}: damaged: its header is not valid JSON") from None

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The header's entries for tensors, without the metadata."""
        return {name: entry for name, entry in self.parsed_header.items() if name != METADATA}

    @cached_property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors in the order of their bytes in the file."""
        start = len(self.header)
        tensors = [
            StoredTensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                *(start + offset for offset in entry["data_offsets"]),
            )
            for name, entry in self.entries.items()
        ]
        return tuple(sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)))

    @property
    def shapes(self) -> Shapes:
        """Shape of each tensor, by name."""
        return {name: tuple(entry["shape"]) for name, entry in self.entries.items()}

    def read_tensor(self, name: str) -> "Tensor":
        """Read one tensor; the file is memory-mapped, not loaded."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def read_arrays(self) -> "dict[str, ndarray]":
        """Read all tensors as float32 arrays, by name. For small files such as adapters.

        Raises InputError for a tensor that does not hold floating-point numbers.
        """
        import numpy

        from portllm.weights import dtypes

        content = numpy.fromfile(self.path, numpy.uint8, offset=len(self.header))
        arrays = {}
        for name, entry in self.entries.items():
            if entry["dtype"] not in dtypes.STORED:
                raise InputError(
                    f"{self.path}: found {name} in {entry['dtype']}, {dtypes.EXPECTED}"
                )
            begin, end = entry["data_offsets"]
            stored = content[begin:end].view(dtypes.STORED[entry["dtype"]])
            with numpy.errstate(over="ignore"):  # the caller checks for infinity
                wide = dtypes.widened(stored, entry["dtype"]).astype(numpy.float32, copy=False)
            arrays[name] = wide.reshape(entry["shape"])
        return arrays
