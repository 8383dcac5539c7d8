"""Write large files sequentially with direct I/O, past the kernel's page cache.

Copying into the page cache costs as much CPU time as the sums of a merge, and the copy is evicted
by the next file. File systems without direct I/O use the page cache.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PART = 1 << 22
"""Bytes per write."""
PAGE = mmap.PAGESIZE
"""Direct writes must be page-aligned, in the file and in memory."""
AHEAD = 2
"""Parts of a file that may be queued for writing."""
DIRECT = getattr(os, "O_DIRECT", 0)


class Writers:
    """Threads that write and hash files, and reusable buffers for the parts of files."""

    def __init__(self, pool: ThreadPoolExecutor, hasher: ThreadPoolExecutor) -> None:
        """The hasher must be a single thread, to hash parts in order."""
        self._pool, self._hasher = pool, hasher
        self._free: deque[mmap.mmap] = deque()
        self._closing: list[Future[None]] = []
        self._open: set[_Descriptor] = set()

    def open(self, path: Path) -> "_Descriptor":
        """Create a file; raises FileExistsError."""
        file = _Descriptor(path)
        self._open.add(file)
        return file

    def take(self) -> mmap.mmap:
        """Return a page-aligned buffer for a part."""
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, PART)

    def write(
        self, file: "_Descriptor", offset: int, part: mmap.mmap, filled: int, digest: Any | None
    ) -> Future[None]:
        """Queue the first `filled` bytes of a part for writing and hashing; then reuse it."""
        content = memoryview(part)
        pages = -(-filled // PAGE) * PAGE
        hashed = None
        if digest is not None:
            hashed = self._hasher.submit(digest.update, content[:filled])

        def act() -> None:
            file.write(content[:pages], offset)
            if hashed is not None:
                hashed.result()
            self._free.append(part)

        return self._pool.submit(act)

    def digest_of(self, digest: Any) -> str:
        """Return the hexadecimal digest when everything queued is hashed."""
        return self._hasher.submit(digest.hexdigest).result()

    def close(self, file: "_Descriptor", size: int, before: list[Future[None]]) -> None:
        """Queue a file to be cut to its size, flushed and closed, after the writes in `before`."""

        def act() -> None:
            # Cannot deadlock: these writes were submitted earlier.
            for future in before:
                future.result()
            file.end(size)
            self._open.remove(file)

        self._closing.append(self._pool.submit(act))

    def wait(self) -> None:
        """Wait until every closed file is on disk; raise the errors of its writes."""
        for future in self._closing:
            future.result()

    def give_up(self) -> None:
        """Close the files that are still open, when no thread writes any more."""
        for file in self._open:
            file.close()


@contextmanager
def writers() -> Iterator[Writers]:
    """Start one thread for hashing and two for I/O: one writes while the other flushes a file."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as hasher:
        threads = Writers(pool, hasher)
        stack.callback(threads.give_up)
        yield threads


class _Descriptor:
    """An open file. One thread writes at a time, because several would spin in the kernel."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._lock = threading.Lock()
        self._direct = bool(DIRECT)
        try:
            self._set_flags(DIRECT)
        except OSError:
            self._direct = False

    def _set_flags(self, direct: int) -> None:
        others = fcntl.fcntl(self._number, fcntl.F_GETFL) & ~DIRECT
        fcntl.fcntl(self._number, fcntl.F_SETFL, others | direct)

    def write(self, content: memoryview, offset: int) -> None:
        with self._lock:
            while content:
                try:
                    count = os.pwrite(self._number, content, offset)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._direct:
                        raise
                    # Some file systems reject direct I/O only on a write.
                    self._set_flags(0)
                    self._direct = False
                else:
                    content, offset = content[count:], offset + count

    def end(self, size: int) -> None:
        os.ftruncate(self._number, size)
        os.fsync(self._number)
        self.close()

    def close(self) -> None:
        os.close(self._number)


class NewFile:
    """A file written by appending.

    After `close`, its last parts may still be queued; `Writers.wait` waits for them.
    """

    def __init__(self, path: Path, writers: Writers, *, hashed: bool) -> None:
        """Create it; raises FileExistsError."""
        self._file = writers.open(path)
        self._writers = writers
        self._hash = hashlib.sha256() if hashed else None
        self._part: mmap.mmap | None = None
        self._filled = self._written = 0
        self._waiting: deque[Future[None]] = deque()

    def append(self, content: Tensor) -> None:
        """Append bytes, (count,) uint8, which are copied."""
        while len(content):
            if self._part is None:
                self._part = self._writers.take()
            count = min(len(content), PART - self._filled)
            target = torch.frombuffer(
                self._part, dtype=torch.uint8, count=count, offset=self._filled
            )
            target.copy_(content[:count])
            self._filled += count
            content = content[count:]
            if self._filled == PART:
                self._send()

    def _send(self) -> None:
        if self._part is None:
            return
        while len(self._waiting) >= AHEAD:
            self._waiting.popleft().result()
        sent = self._writers.write(self._file, self._written, self._part, self._filled, self._hash)
        self._waiting.append(sent)
        self._written += self._filled
        self._part, self._filled = None, 0

    def close(self) -> str | None:
        """Write the rest; return the SHA-256 of the file if it is hashed."""
        self._send()
        self._writers.close(self._file, self._written, list(self._waiting))
        return None if self._hash is None else self._writers.digest_of(self._hash)
