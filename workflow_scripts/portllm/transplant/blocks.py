"""Checkpoint weights cut into blocks, and edits applied to a block of rows at a time.

A block is some rows of an edited weight, or a range of bytes that nothing changes. Memory holds a
few blocks, whatever the size of the model. `portllm.transplant.streaming` reads and writes them.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from portllm.errors import InputError
from portllm.weights import dtypes
from portllm.weights.safetensors_file import StoredTensor

BLOCK = 1 << 20
"""Bytes read at a time."""
PIECE = 1 << 16
"""Numbers summed at a time: their float32 values stay in the processor's cache."""

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The torch dtypes of the stored dtypes in which weights can be edited."""
_STORED = {dtype: name for name, dtype in TORCH.items()}

Apply = Callable[[Tensor, int], None]
"""Changes a block of rows in place; the number is that of its first row."""


class Edit(Protocol):
    """A change of one weight."""

    @property
    def whole(self) -> bool:
        """Whether all rows are needed at once."""

    def prepared(self, dtype: torch.dtype) -> Apply:
        """The edit for rows of a dtype that `sum_dtype` gives; rows are (count, row length)."""


Targets = dict[str, list[tuple[str, Edit | None]]]
"""Source weight → the weights written for it, itself first. Weights that are absent are copied."""


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums of stored numbers are computed (`dtypes.arithmetic`)."""
    return TORCH[dtypes.arithmetic(_STORED[dtype])]


class PreparedEdit:
    """An edit of a weight, prepared once by the first block that needs it."""

    def __init__(self, edit: Edit, dtype: torch.dtype) -> None:
        self._edit, self._dtype = edit, dtype
        self._lock = threading.Lock()
        self._apply: Apply | None = None

    def __call__(self, rows: Tensor, start: int) -> None:
        """Change a block of rows in place; `start` is the number of its first row."""
        with self._lock:
            if self._apply is None:
                self._apply = self._edit.prepared(self._dtype)
        self._apply(rows, start)


class Buffers:
    """Memory for blocks, reused because the kernel takes as long to map new pages as sums take."""

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque()
        self._of_thread = threading.local()

    def take(self, size: int) -> Tensor:
        """Return a buffer of `size` bytes, the caller's until `give_back`."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8)
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]

    def give_back(self, parts: Iterable[Tensor]) -> None:
        """Take buffers back; several parts may share one."""
        storages = {part.data_ptr(): part.untyped_storage() for part in parts}
        for storage in storages.values():
            self._free.append(torch.empty(0, dtype=torch.uint8).set_(storage))

    def scratch(self, size: int) -> Tensor:
        """Return a buffer of the calling thread, valid until its next call."""
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._of_thread.buffer = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]


@dataclass(frozen=True)
class Destination:
    """An output of a block, by its number, and the edit that the block gets there."""

    output: int
    apply: PreparedEdit | None = None


@dataclass(frozen=True)
class Block:
    """A range of a shard's bytes. For an edited weight (`tensor`), rows from `row` on.

    `piece` is the number of rows that are summed at a time. `again` marks bytes that an earlier
    block has read already.
    """

    tensor: StoredTensor | None
    offset: int
    size: int
    row: int
    piece: int
    destinations: tuple[Destination, ...]
    again: bool = False


def _blocks_of_weight(
    tensor: StoredTensor, edits: Sequence[tuple[int, Edit | None]]
) -> Iterator[Block]:
    """Yield the blocks of a weight that an output edits. `edits` name outputs by their number."""
    rows = tensor.shape[0] if tensor.shape else 1
    if tensor.size == 0:
        return
    dtype = TORCH[tensor.dtype]
    whole = any(edit is not None and edit.whole for _, edit in edits)
    destinations = tuple(
        Destination(output, None if edit is None else PreparedEdit(edit, sum_dtype(dtype)))
        for output, edit in edits
    )
    row_size = tensor.size // rows
    step = rows if whole else max(1, BLOCK // row_size)
    piece = rows if whole else max(1, PIECE * dtype.itemsize // row_size)
    for row in range(0, rows, step):
        begin = row * row_size
        size = min(step * row_size, tensor.size - begin)
        yield Block(tensor, tensor.begin + begin, size, row, piece, destinations)


def _unchanged_blocks(begin: int, end: int, outputs: int) -> Iterator[Block]:
    destinations = tuple(map(Destination, range(outputs)))
    for offset in range(begin, end, BLOCK):
        yield Block(None, offset, min(BLOCK, end - offset), 0, 1, destinations)


def blocks_of_shard(tensors: Sequence[StoredTensor], outputs: Sequence[Targets]) -> Iterator[Block]:
    """Yield all blocks of a shard, in an order that gives each output's bytes from begin to end."""
    begin, end = (tensors[0].begin, tensors[-1].end) if tensors else (0, 0)
    for tensor in tensors:
        edits = [targets.get(tensor.name, [(tensor.name, None)])[0][1] for targets in outputs]
        if any(edit is not None for edit in edits):
            yield from _unchanged_blocks(begin, tensor.begin, len(outputs))
            yield from _blocks_of_weight(tensor, list(enumerate(edits)))
            begin = tensor.end
    yield from _unchanged_blocks(begin, end, len(outputs))
    for tensor in tensors:
        for index, targets in enumerate(outputs):
            for _, edit in targets.get(tensor.name, ())[1:]:
                for block in _blocks_of_weight(tensor, [(index, edit)]):
                    yield replace(block, again=True)


def read_into(file: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from an open file; raises InputError where the file ends before."""
    while buffer:
        count = os.preadv(file, [buffer], offset)
        if count == 0:
            raise InputError("a shard became shorter while it was read")
        buffer, offset = buffer[count:], offset + count


def _edited(block: Block, stored: Tensor, apply: PreparedEdit, buffers: Buffers) -> Tensor:
    """Widen, change and round the stored numbers of a block, one piece at a time."""
    result = buffers.take(block.size).view(stored.dtype).view(stored.shape)
    shape = min(block.piece, len(stored)), stored.shape[1]
    dtype = sum_dtype(stored.dtype)
    wide = buffers.scratch(shape[0] * shape[1] * dtype.itemsize).view(dtype).view(shape)
    for start in range(0, len(stored), block.piece):
        before, after = (rows[start : start + block.piece] for rows in (stored, result))
        rows = wide[: len(before)]
        rows.copy_(before)
        apply(rows, block.row + start)
        after.copy_(rows)
        # A sum is finite only if all numbers are, and takes 5 % of the time of an edit, which
        # the time for hashing and writing exceeds.
        if not math.isfinite(after.sum().item()):
            _check_finite(before, after, block.tensor.name)
    return result


def _check_finite(before: Tensor, after: Tensor, name: str) -> None:
    if after.isfinite().all():
        return  # only their sum is too large
    if not before.isfinite().all():
        raise InputError(
            f"{name}: found NaN or infinity, expected finite numbers to add a patch to"
        )
    dtype = str(after.dtype).removeprefix("torch.")
    raise InputError(f"{name}: the sum with the patch is NaN or too large for {dtype}")


@torch.inference_mode()
def process_block(
    block: Block, source: int, buffers: Buffers
) -> tuple[Block, Tensor, list[Tensor]]:
    """Read a block; return its original bytes, and its new bytes for each destination."""
    content = buffers.take(block.size)
    read_into(source, memoryview(content.numpy()), block.offset)
    results = []
    for destination in block.destinations:
        changed = content
        if destination.apply is not None:
            stored = content.view(TORCH[block.tensor.dtype])
            rows = block.size * (block.tensor.shape[0] if block.tensor.shape else 1)
            rows //= block.tensor.size
            edited = _edited(block, stored.view(rows, -1), destination.apply, buffers)
            changed = edited.view(-1).view(torch.uint8)
        results.append(changed)
    return block, content, results
