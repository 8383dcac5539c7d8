"""Write checkpoints from a checkpoint's bytes, block by block, in one pass over its shards.

Blocks are read, changed by several threads, and hashed and written in file order, so no file is
read twice (`portllm.transplant.blocks`).
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from portllm.errors import InputError, nearest
from portllm.storage.files import write_json
from portllm.transplant import blocks, direct_io
from portllm.transplant.blocks import TORCH, Targets
from portllm.weights import checkpoints
from portllm.weights.checkpoints import Checkpoint
from portllm.weights.safetensors_file import SafetensorsFile

log = logging.getLogger(__name__)

SPARE = 1 << 24
"""Bytes that a checkpoint needs besides its weights: tokenizer, configuration, manifest."""


@dataclass(frozen=True)
class Written:
    """SHA-256 of the files written to each directory, and of the shards read, by file name."""

    content: dict[Path, dict[str, str]] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MergePlan:
    """What a merge would write. Bytes are those of the weight files."""

    shards: int
    edited: int
    edited_bytes: int
    bytes: int


def plan(model: Checkpoint, targets: Targets) -> MergePlan:
    """Return what `write` would write for one output, from headers alone."""
    for shard in model.shards:
        shard.validate()
    tensors = {tensor.name: tensor for shard in model.shards for tensor in shard.tensors}
    for name, results in targets.items():
        if name not in tensors:
            raise InputError(f"{model} has no weight {name}; {nearest(name, tensors)}")
        dtype = tensors[name].dtype
        if dtype not in TORCH and any(edit is not None for _, edit in results):
            raise InputError(
                f"{model}: {name} is stored as {dtype}; a patch can be added to "
                f"{', '.join(TORCH)} only"
            )
    edited = [name for name, results in targets.items() for _, edit in results if edit is not None]
    added = sum(tensors[name].size * (len(results) - 1) for name, results in targets.items())
    total = sum(shard.size for shard in model.shards) + added
    edited_bytes = sum(tensors[name].size for name in edited)
    return MergePlan(len(model.shards), len(edited), edited_bytes, total)


def check_space(needed: dict[Path, int]) -> None:
    """Raise InputError unless there is room for directories of these sizes, in bytes."""
    by_device: dict[int, tuple[Path, int]] = {}
    for directory, size in needed.items():
        place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        device = place.stat().st_dev
        by_device[device] = (place, by_device.get(device, (place, 0))[1] + size + SPARE)
    for place, size in by_device.values():
        free = shutil.disk_usage(place).free
        if free < size:
            raise InputError(
                f"{place}: too little disk space for the merged weights: found {free / 1e9:.2f} GB "
                f"free, expected {size / 1e9:.2f} GB"
            )


@contextmanager
def _full_disk_as_input_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{directory}: {error.strerror} while writing the weights") from None


def _header(shard: SafetensorsFile, targets: Targets) -> bytes:
    """Return the header of a shard's copy: unchanged, unless weights are added at its end."""
    added = [
        replace(tensor, name=name)
        for tensor in shard.tensors
        for name, _ in targets.get(tensor.name, ())[1:]
    ]
    if not added:
        return shard.header
    header = dict(shard.parsed_header)
    end = shard.size - len(shard.header)
    for tensor in added:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _in_order(
    pool: ThreadPoolExecutor | None, calls: Iterable[Callable[[], Any]], ahead: int
) -> Iterator[Any]:
    """Yield the results of calls in order, with at most `ahead` calls started in advance."""
    if pool is None:
        yield from (call() for call in calls)
        return
    started: deque[Future] = deque()
    try:
        for call in calls:
            started.append(pool.submit(call))
            if len(started) > ahead:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        # The caller closes the files next, so no call may still be using them.
        for future in started:
            future.cancel()
        wait(started)


def _named(shard: SafetensorsFile, results: Iterator[Any]) -> Iterator[Any]:
    """Put a shard's path in front of the messages of its InputErrors."""
    try:
        yield from results
    except InputError as error:
        raise InputError(f"{shard.path}: {error}") from None


def _write_index(model: Checkpoint, directory: Path, targets: Targets) -> None:
    if model.index is None:
        return
    weight_map = {name: shard.path.name for name, shard in model.shard_of.items()}
    if weight_map == model.index["weight_map"]:
        weight_map = dict(model.index["weight_map"])  # in its own order
    for source, results in targets.items():
        for name, _ in results[1:]:
            weight_map[name] = model.shard_of[source].path.name
    if weight_map == model.index["weight_map"]:
        shutil.copyfile(model.directory / checkpoints.INDEX, directory / checkpoints.INDEX)
        return
    index = {**model.index, "weight_map": weight_map}
    if isinstance((index.get("metadata") or {}).get("total_size"), int):
        size = sum(shard.stat().st_size for shard in directory.glob("*.safetensors"))
        growth = size - sum(shard.size for shard in model.shards)
        total = index["metadata"]["total_size"] + growth
        index["metadata"] = {**index["metadata"], "total_size": total}
    write_json(directory / checkpoints.INDEX, index)


@dataclass(frozen=True)
class _Pass:
    """What the shards of one pass share."""

    outputs: dict[Path, Targets]
    pool: ThreadPoolExecutor | None
    ahead: int
    hashed: bool
    source_hashed: bool
    bar: tqdm
    writers: direct_io.Writers
    buffers: blocks.Buffers = field(default_factory=blocks.Buffers)

    def write(self, shard: SafetensorsFile, written: Written) -> int:
        """Write one shard of every output; return the number of bytes."""
        name = shard.path.name
        files = [
            direct_io.NewFile(directory / name, self.writers, hashed=self.hashed)
            for directory in self.outputs
        ]
        for file, targets in zip(files, self.outputs.values(), strict=True):
            header = bytearray(_header(shard, targets))
            file.append(torch.frombuffer(header, dtype=torch.uint8))
        source_hash = hashlib.sha256(shard.header)
        count = 0
        with shard.path.open("rb") as source:
            calls = (
                partial(blocks.process_block, block, source.fileno(), self.buffers)
                for block in blocks.blocks_of_shard(shard.tensors, list(self.outputs.values()))
            )
            for block, content, results in _named(shard, _in_order(self.pool, calls, self.ahead)):
                if self.source_hashed and not block.again:
                    source_hash.update(content.numpy())
                for destination, stored in zip(block.destinations, results, strict=True):
                    files[destination.output].append(stored)
                self.buffers.give_back([content, *results])
                count += block.size * len(block.destinations)
                self.bar.update(block.size * len(block.destinations))
        hashes = [file.close() for file in files]
        if self.source_hashed:
            written.source[name] = source_hash.hexdigest()
        if self.hashed:
            for directory, digest in zip(self.outputs, hashes, strict=True):
                written.content[directory][name] = digest
        return count


def default_threads() -> int:
    """Return OMP_NUM_THREADS, as for every job of the workflow; else the cores, at most four."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:
        return int(threads)
    return min(4, len(os.sched_getaffinity(0)))


def write(
    model: Checkpoint,
    outputs: dict[Path, Targets],
    *,
    threads: int | None = None,
    hashed: bool = True,
    source_hashed: bool = False,
) -> Written:
    """Write the edited weights of `model`, and the index, into each output directory.

    Every shard keeps its name, order and metadata; weights without an edit are copied byte for
    byte. All files are on the disk when this returns.

    Args:
        model: the checkpoint to read.
        outputs: the edits for each directory. The directories exist.
        threads: threads that edit blocks; None means `default_threads`.
        hashed: whether to hash the written files.
        source_hashed: whether to hash the shards of `model`.

    Raises:
        InputError: for a missing weight, a dtype that cannot be summed, or too little disk space.

    """
    threads = threads or default_threads()
    plans = {directory: plan(model, targets) for directory, targets in outputs.items()}
    check_space({directory: one.bytes for directory, one in plans.items()})
    written = Written({directory: {} for directory in outputs})
    torch.set_num_threads(1)  # The threads work on blocks; more within one block would only wait.
    with ExitStack() as stack:
        stack.enter_context(_full_disk_as_input_error(next(iter(outputs))))
        pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
        # Shown on a terminal only; a log gets a line for each shard.
        total = sum(one.bytes for one in plans.values())
        bar = stack.enter_context(tqdm(total=total, unit="B", unit_scale=True, disable=None))
        writers = stack.enter_context(direct_io.writers())
        one_pass = _Pass(outputs, pool, 2 * threads, hashed, source_hashed, bar, writers)
        for shard in model.shards:
            started = time.perf_counter()
            gigabytes = one_pass.write(shard, written) / 1e9
            rate = gigabytes / (time.perf_counter() - started)
            log.info("wrote %s: %.2f GB, %.2f GB/s", shard.path.name, gigabytes, rate)
        writers.wait()
    for directory, targets in outputs.items():
        _write_index(model, directory, targets)
    return written
