"""Large files written once, from begin to end, past the kernel's cache of pages.

A copy in that cache costs as much of the processor as a checkpoint's sums do, and is thrown away
as soon as the next file comes. Where a file system has no direct writes, the cache is used.
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
"""Bytes that are written at a time."""
PAGE = mmap.PAGESIZE
"""Direct writes begin and end at multiples of it, in the file and in memory."""
AHEAD = 2
"""Parts of a file that may wait to be written."""
DIRECT = getattr(os, "O_DIRECT", 0)


class Writers:
    """Threads that write and hash files, and memory for the parts of these, used over and over."""

    def __init__(self, pool: ThreadPoolExecutor, hasher: ThreadPoolExecutor) -> None:
        """The hasher is one thread, as what it hashes has to stay in order."""
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
        """Memory for a part: its begin is a page's."""
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, PART)

    def write(
        self, file: "_Descriptor", offset: int, part: mmap.mmap, filled: int, digest: Any | None
    ) -> Future[None]:
        """Write and hash the begin of a part some time, and take its memory back."""
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
        """The digest of all that was given to be hashed, in hexadecimal digits."""
        return self._hasher.submit(digest.hexdigest).result()

    def close(self, file: "_Descriptor", size: int, before: list[Future[None]]) -> None:
        """Give a file its size and have it on the disk, some time after what is to come before."""

        def act() -> None:
            # They were submitted before, so that none of them waits for this thread.
            for future in before:
                future.result()
            file.end(size)
            self._open.remove(file)

        self._closing.append(self._pool.submit(act))

    def wait(self) -> None:
        """Return when every closed file is on the disk; raises what its writing has raised."""
        for future in self._closing:
            future.result()

    def give_up(self) -> None:
        """Close what is still open, as nobody writes any more."""
        for file in self._open:
            file.close()


@contextmanager
def writers() -> Iterator[Writers]:
    """One thread that hashes and two others: one writes while one waits for the disk at an end."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as hasher:
        threads = Writers(pool, hasher)
        stack.callback(threads.give_up)
        yield threads


class _Descriptor:
    """An open file that one thread writes at a time: in the kernel several would spin."""

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
                    # Some file systems say only now that they know no direct writes, or not these.
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
    """A file that grows at its end.

    When it is closed its last parts may still be on their way to the disk: `Writers.wait` waits.
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
        """Write bytes behind those that are there; they are copied, (count,) uint8."""
        while len(content):
            if self._part is None:
                self._part = self._writers.take()
            count = min(len(content), PART - self._filled)
            there = torch.frombuffer(
                self._part, dtype=torch.uint8, count=count, offset=self._filled
            )
            there.copy_(content[:count])
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
        """Write what is left; return the SHA-256 of it all, where that is made."""
        self._send()
        self._writers.close(self._file, self._written, list(self._waiting))
        return None if self._hash is None else self._writers.digest_of(self._hash)
