"""One safetensors file: its header, read once, and the tensors behind it."""

import math
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError, shown
from portllm.storage.files import open_regular, parse_json

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

METADATA = "__metadata__"
LARGEST_HEADER = 100_000_000
"""Bytes, as in the safetensors library."""
MOST_TENSORS = 200_000
"""Tensors of a file. The largest models have 100,000 in all their shards."""
MOST_DIMENSIONS = 64
"""Dimensions of a tensor, as in numpy."""

# Unknown dtypes are left to the library.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}

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
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int for size in sizes):
        return False
    return all(0 <= size < 1 << 63 for size in sizes) and offsets[0] <= offsets[1]


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
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if 8 + length > size:
                raise InputError(f"{path}: truncated in its header")
            if length > LARGEST_HEADER:
                raise InputError(
                    f"{path}: damaged: found a header of {length:,} bytes, expected at most "
                    f"{LARGEST_HEADER:,}"
                )
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
        if len(self.parsed_header) > MOST_TENSORS:
            raise InputError(
                f"{self.path}: found {len(self.parsed_header):,} tensors, expected at most "
                f"{MOST_TENSORS:,}"
            )
        for name, entry in self.entries.items():
            if not _is_entry(entry):
                raise InputError(
                    f"{self.path}: damaged: {name:.200}: found {shown(entry)}, expected dtype, "
                    "shape and data_offsets"
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
            bits = _BITS.get(tensor.dtype)
            if bits is not None and math.prod(tensor.shape) * bits != tensor.size * 8:
                raise InputError(
                    f"{self.path}: damaged: {tensor.name}: found {tensor.size} bytes, which do not "
                    f"fit {tensor.dtype} of shape {list(tensor.shape)}"
                )

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
            text = self.header[8:].decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: damaged: its header is not UTF-8") from None
        return parse_json(text, f"{self.path}: damaged: its header")

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
