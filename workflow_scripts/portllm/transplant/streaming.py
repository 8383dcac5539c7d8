"""Checkpoints written from a checkpoint's bytes, block by block, in one pass over its shards.

A block is some rows of a weight, or a stretch of bytes that nothing changes. Blocks are read,
changed by threads, and hashed and written in the order of the file as they come, so that no file
is read twice. Memory holds a few blocks, whatever the model's size.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from portllm.errors import InputError, nearest
from portllm.storage.files import read_json, write_json
from portllm.transplant import direct_io
from portllm.weights import checkpoints
from portllm.weights.checkpoints import Stored

log = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes that are read at a time."""
PIECE = 1 << 16
"""Numbers whose sum is made at a time: their float32 stay in the processor's cache."""
SPARE = 1 << 24
"""Bytes that a checkpoint needs beside its weights: tokenizer, configuration, manifest."""

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

Apply = Callable[[Tensor, int], None]
"""Changes a block of rows in place; the number is that of its first row."""


class Edit(Protocol):
    """What is done to a weight."""

    @property
    def whole(self) -> bool:
        """Whether all rows are needed at once."""

    def prepared(self, dtype: torch.dtype) -> Apply:
        """The edit for rows in the dtype of `arithmetic`; rows are (count, numbers in each)."""


Targets = dict[str, list[tuple[str, Edit | None]]]
"""Source weight → the weights made of it, itself first; those not named are only copied."""


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: wider than the stored dtype, so that only its own rounding shows."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


@dataclass(frozen=True)
class Written:
    """SHA-256 of the files of each directory, and of the shards that were read, by their name."""

    content: dict[Path, dict[str, str]] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MergePlan:
    """What a checkpoint would be made of. Bytes are those of the weights' files."""

    shards: int
    edited: int
    edited_bytes: int
    bytes: int


class _Prepared:
    """An edit that is prepared by the first block that needs it, for all blocks of a weight."""

    def __init__(self, edit: Edit, dtype: torch.dtype) -> None:
        self._edit, self._dtype = edit, dtype
        self._lock = threading.Lock()
        self._apply: Apply | None = None

    def __call__(self, rows: Tensor, start: int) -> None:
        with self._lock:
            if self._apply is None:
                self._apply = self._edit.prepared(self._dtype)
        self._apply(rows, start)


class _Buffers:
    """Memory for blocks, used again and again.

    The kernel takes as long to hand out new pages as sums do to fill them.
    """

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque()
        self._of_thread = threading.local()

    def take(self, size: int) -> Tensor:
        """So many bytes, which are the caller's until they are given back."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8)
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]

    def give_back(self, parts: Iterable[Tensor]) -> None:
        """Take bytes back; several parts may be the same ones."""
        storages = {part.data_ptr(): part.untyped_storage() for part in parts}
        for storage in storages.values():
            self._free.append(torch.empty(0, dtype=torch.uint8).set_(storage))

    def scratch(self, size: int) -> Tensor:
        """So many bytes of the calling thread's own, until it asks again."""
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._of_thread.buffer = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]


@dataclass(frozen=True)
class _Place:
    """Where a block goes: which output, changed by what."""

    output: int
    apply: _Prepared | None = None


@dataclass(frozen=True)
class _Block:
    """Bytes of a shard. Those of a weight that is edited are rows from `row` on."""

    tensor: Stored | None
    offset: int
    size: int
    row: int
    piece: int
    places: tuple[_Place, ...]
    again: bool = False


def plan(model: Path, targets: Targets) -> MergePlan:
    """What `write` would do for one output, from headers alone."""
    shards = checkpoints.shards(model)
    found = {tensor.name: tensor for shard in shards for tensor in checkpoints.stored(shard)}
    _check_targets(model, found, targets)
    sizes = {name: tensor.end - tensor.begin for name, tensor in found.items()}
    edited = [name for name, places in targets.items() for _, edit in places if edit is not None]
    added = sum(sizes[name] * (len(places) - 1) for name, places in targets.items())
    total = sum(shard.stat().st_size for shard in shards) + added
    return MergePlan(len(shards), len(edited), sum(sizes[name] for name in edited), total)


def _check_targets(model: Path, found: dict[str, Stored], targets: Targets) -> None:
    for name, places in targets.items():
        if name not in found:
            raise InputError(f"{model} has no weight {name}; {nearest(name, found)}")
        dtype = found[name].dtype
        if dtype not in TORCH and any(edit is not None for _, edit in places):
            raise InputError(
                f"{model}: {name} is stored as {dtype}; a patch can be added to "
                f"{', '.join(TORCH)} only"
            )


def check_space(needed: dict[Path, int]) -> None:
    """Raise InputError unless file systems have room for what directories will hold, in bytes."""
    by_device: dict[int, tuple[Path, int]] = {}
    for directory, size in needed.items():
        place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        device = place.stat().st_dev
        by_device[device] = (place, by_device.get(device, (place, 0))[1] + size + SPARE)
    for place, size in by_device.values():
        free = shutil.disk_usage(place).free
        if free < size:
            raise InputError(
                f"{place}: no room for the merged weights: {size / 1e9:.2f} GB needed, "
                f"{free / 1e9:.2f} GB free"
            )


@contextmanager
def _no_room_is_said(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{directory}: {error.strerror} while the weights were written") from None


def _header(shard: Path, tensors: list[Stored], targets: Targets) -> bytes:
    """Header of a shard's copy: as it is, unless weights are added behind the others."""
    length = checkpoints.header_length(shard)
    with shard.open("rb") as file:
        raw = file.read(length)
    added = [
        replace(tensor, name=name)
        for tensor in tensors
        for name, _ in targets.get(tensor.name, ())[1:]
    ]
    if not added:
        return raw
    header = json.loads(raw[8:])
    end = shard.stat().st_size - length
    for tensor in added:
        size = tensor.end - tensor.begin
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _of_tensor(tensor: Stored, places: list[tuple[int, Edit | None]]) -> Iterator[_Block]:
    """Blocks of a weight that some output edits; places are outputs by their number."""
    rows = tensor.shape[0] if tensor.shape else 1
    size = tensor.end - tensor.begin
    if size == 0:
        return
    dtype = TORCH[tensor.dtype]
    whole = any(edit is not None and edit.whole for _, edit in places)
    there = tuple(
        _Place(output, None if edit is None else _Prepared(edit, arithmetic(dtype)))
        for output, edit in places
    )
    row_size = size // rows
    step = rows if whole else max(1, BLOCK // row_size)
    piece = rows if whole else max(1, PIECE * dtype.itemsize // row_size)
    for row in range(0, rows, step):
        begin = row * row_size
        part = min(step * row_size, size - begin)
        yield _Block(tensor, tensor.begin + begin, part, row, piece, there)


def _of_bytes(begin: int, end: int, outputs: int) -> Iterator[_Block]:
    places = tuple(map(_Place, range(outputs)))
    for offset in range(begin, end, BLOCK):
        yield _Block(None, offset, min(BLOCK, end - offset), 0, 1, places)


def _blocks(tensors: list[Stored], outputs: list[Targets]) -> Iterator[_Block]:
    """All blocks of a shard, such that each output's bytes come in their order."""
    begin, end = (tensors[0].begin, tensors[-1].end) if tensors else (0, 0)
    for tensor in tensors:
        edits = [targets.get(tensor.name, [(tensor.name, None)])[0][1] for targets in outputs]
        if any(edit is not None for edit in edits):
            yield from _of_bytes(begin, tensor.begin, len(outputs))
            yield from _of_tensor(tensor, list(enumerate(edits)))
            begin = tensor.end
    yield from _of_bytes(begin, end, len(outputs))
    for tensor in tensors:
        for index, targets in enumerate(outputs):
            for _, edit in targets.get(tensor.name, ())[1:]:
                for block in _of_tensor(tensor, [(index, edit)]):
                    yield replace(block, again=True)


def _read(file: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        count = os.preadv(file, [buffer], offset)
        if count == 0:
            raise InputError("a shard became shorter while it was read")
        buffer, offset = buffer[count:], offset + count


def _edited(block: _Block, stored: Tensor, apply: _Prepared, buffers: _Buffers) -> Tensor:
    """New stored numbers of a block: widened, changed and rounded, a cache's worth at a time."""
    result = buffers.take(block.size).view(stored.dtype).view(stored.shape)
    shape = min(block.piece, len(stored)), stored.shape[1]
    dtype = arithmetic(stored.dtype)
    wide = buffers.scratch(shape[0] * shape[1] * dtype.itemsize).view(dtype).view(shape)
    for start in range(0, len(stored), block.piece):
        before, after = (rows[start : start + block.piece] for rows in (stored, result))
        rows = wide[: len(before)]
        rows.copy_(before)
        apply(rows, block.row + start)
        after.copy_(rows)
    # The only stored dtype that the sum of ordinary weights and changes can overflow.
    if stored.dtype == torch.float16 and result.isinf().any() and not stored.isinf().any():
        raise InputError(f"{block.tensor.name}: the sum with the patch is too large for float16")
    return result


@torch.inference_mode()
def _work(block: _Block, source: int, buffers: _Buffers) -> tuple[_Block, Tensor, list[Tensor]]:
    """Read a block; return its bytes as they are, and as they are to be for each of its places."""
    content = buffers.take(block.size)
    _read(source, memoryview(content.numpy()), block.offset)
    made = []
    for place in block.places:
        changed = content
        if place.apply is not None:
            stored = content.view(TORCH[block.tensor.dtype])
            rows = block.size * (block.tensor.shape[0] if block.tensor.shape else 1)
            rows //= block.tensor.end - block.tensor.begin
            stored = stored.view(rows, -1)
            changed = _edited(block, stored, place.apply, buffers).view(-1).view(torch.uint8)
        made.append(changed)
    return block, content, made


def _in_order(
    pool: ThreadPoolExecutor | None, calls: Iterable[Callable[[], Any]], ahead: int
) -> Iterator[Any]:
    """Results of calls in their order, at most `ahead` of them begun before they are asked for."""
    if pool is None:
        yield from (call() for call in calls)
        return
    begun: deque[Future] = deque()
    try:
        for call in calls:
            begun.append(pool.submit(call))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        # The files are closed after this, so nothing may be at work on them any more.
        for future in begun:
            future.cancel()
        wait(begun)


def _write_index(model: Path, directory: Path, shard_of: dict[str, str], targets: Targets) -> None:
    if not (model / checkpoints.INDEX).exists():
        return
    added = {name: source for source, places in targets.items() for name, _ in places[1:]}
    if not added:
        shutil.copyfile(model / checkpoints.INDEX, directory / checkpoints.INDEX)
        return
    index = read_json(model / checkpoints.INDEX)
    for name, source in added.items():
        index["weight_map"][name] = shard_of[source]
    if "total_size" in index.get("metadata", {}):
        grown = sum(shard.stat().st_size for shard in directory.glob("*.safetensors"))
        was = sum(shard.stat().st_size for shard in checkpoints.shards(model))
        index["metadata"]["total_size"] += grown - was
    write_json(directory / checkpoints.INDEX, index)


@dataclass(frozen=True)
class _Pass:
    """What the shards of one pass have in common."""

    outputs: dict[Path, Targets]
    pool: ThreadPoolExecutor | None
    ahead: int
    hashed: bool
    source_hashed: bool
    bar: tqdm
    writers: direct_io.Writers
    buffers: _Buffers = field(default_factory=_Buffers)

    def write(self, shard: Path, written: Written) -> int:
        """Write one shard of every output; return how many bytes."""
        tensors = checkpoints.stored(shard)
        files = [
            direct_io.NewFile(directory / shard.name, self.writers, hashed=self.hashed)
            for directory in self.outputs
        ]
        for file, targets in zip(files, self.outputs.values(), strict=True):
            header = bytearray(_header(shard, tensors, targets))
            file.append(torch.frombuffer(header, dtype=torch.uint8))
        count = 0
        with shard.open("rb") as source:
            own = hashlib.sha256(source.read(checkpoints.header_length(shard)))
            calls = (
                partial(_work, block, source.fileno(), self.buffers)
                for block in _blocks(tensors, list(self.outputs.values()))
            )
            for block, content, made in _in_order(self.pool, calls, self.ahead):
                if self.source_hashed and not block.again:
                    own.update(content.numpy())
                for place, stored in zip(block.places, made, strict=True):
                    files[place.output].append(stored)
                self.buffers.give_back([content, *made])
                count += block.size * len(block.places)
                self.bar.update(block.size * len(block.places))
        hashes = [file.close() for file in files]
        if self.source_hashed:
            written.source[shard.name] = own.hexdigest()
        if self.hashed:
            for directory, digest in zip(self.outputs, hashes, strict=True):
                written.content[directory][shard.name] = digest
        return count


def default_threads() -> int:
    """What OMP_NUM_THREADS says, as for every job of the workflow; else the cores, four at most."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return min(4, len(os.sched_getaffinity(0)))


def write(
    model: Path,
    outputs: dict[Path, Targets],
    *,
    threads: int | None = None,
    hashed: bool = True,
    source_hashed: bool = False,
) -> Written:
    """Write, into each directory, the weights of `model` with edits, and the index.

    Every shard keeps its name, order and metadata; bytes of weights that nothing changes are
    copied. Files are on the disk when this returns. Hashes are of what passes by: `hashed` those
    of the written files, `source_hashed` those of the shards.
    Raises InputError where a weight is missing or of a dtype without sums, or there is no room.
    """
    threads = threads or default_threads()
    shards = checkpoints.shards(model)
    plans = {directory: plan(model, targets) for directory, targets in outputs.items()}
    check_space({directory: one.bytes for directory, one in plans.items()})
    written = Written({directory: {} for directory in outputs})
    torch.set_num_threads(1)  # Threads work on blocks; more of them within one would only wait.
    with ExitStack() as stack:
        stack.enter_context(_no_room_is_said(next(iter(outputs))))
        pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
        # Shown on a terminal only; a log gets a line for each shard.
        total = sum(one.bytes for one in plans.values())
        bar = stack.enter_context(tqdm(total=total, unit="B", unit_scale=True, disable=None))
        writers = stack.enter_context(direct_io.writers())
        one_pass = _Pass(outputs, pool, 2 * threads, hashed, source_hashed, bar, writers)
        for shard in shards:
            started = time.perf_counter()
            gigabytes = one_pass.write(shard, written) / 1e9
            rate = gigabytes / (time.perf_counter() - started)
            log.info("wrote %s: %.2f GB, %.2f GB/s", shard.name, gigabytes, rate)
        writers.wait()
    shard_of = {one.name: shard.name for shard in shards for one in checkpoints.stored(shard)}
    for directory, targets in outputs.items():
        _write_index(model, directory, shard_of, targets)
    return written
