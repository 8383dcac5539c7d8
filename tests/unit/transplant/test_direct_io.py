"""Files written past the page cache, on file systems with and without direct I/O."""

import errno
import fcntl
import gc
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from portllm.transplant import direct_io
from portllm.transplant.direct_io import NewFile, writers

PART = 2 * direct_io.PAGE
Write = Callable[[int, memoryview, int], int]

real_write = os.pwrite


def without_direct_writes(file: int, content: memoryview, offset: int) -> int:
    """Simulate a file system that rejects direct I/O only on the first write."""
    if fcntl.fcntl(file, fcntl.F_GETFL) & direct_io.DIRECT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return real_write(file, content, offset)


def in_small_steps(file: int, content: memoryview, offset: int) -> int:
    """Simulate short writes that do not end at a page boundary."""
    if fcntl.fcntl(file, fcntl.F_GETFL) & direct_io.DIRECT:
        return real_write(file, content[: direct_io.PAGE], offset)
    return real_write(file, content[:1000], offset)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "PART", PART)


def open_files() -> int:
    gc.collect()  # closes what earlier tests have left to the collector
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("write", [real_write, without_direct_writes, in_small_steps])
@pytest.mark.parametrize("size", [0, 1, 4096, PART - 1, PART, PART + 1, 7 * PART + 123])
def test_every_byte_is_written_and_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, write: Write
) -> None:
    monkeypatch.setattr(os, "pwrite", write)
    content = torch.randint(256, (size,), dtype=torch.uint8)
    before = open_files()
    with writers() as threads:
        one = NewFile(tmp_path / "one", threads, hashed=True)
        other = NewFile(tmp_path / "other", threads, hashed=False)
        for part in content.split(777):
            one.append(part)
            other.append(part.flip(0))
        digest = one.close()
        assert other.close() is None
        threads.wait()
    assert (tmp_path / "one").read_bytes() == content.numpy().tobytes()
    flipped = torch.cat([part.flip(0) for part in content.split(777)])
    assert (tmp_path / "other").read_bytes() == flipped.numpy().tobytes()
    assert digest == hashlib.sha256(content.numpy().tobytes()).hexdigest()
    assert open_files() == before


def test_writes_bypass_the_page_cache_where_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = []

    def note(file: int, content: memoryview, offset: int) -> int:
        direct.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & direct_io.DIRECT))
        return real_write(file, content, offset)

    probe = os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(probe, fcntl.F_SETFL, direct_io.DIRECT)
        expected = bool(direct_io.DIRECT)
    except OSError:
        expected = False
    os.close(probe)
    monkeypatch.setattr(os, "pwrite", note)
    with writers() as threads:
        file = NewFile(tmp_path / "file", threads, hashed=False)
        file.append(torch.zeros(5 * PART + 1, dtype=torch.uint8))
        file.close()
        threads.wait()
    assert direct == [expected] * 6


@pytest.mark.parametrize("parts", [1, 10])
def test_a_failed_write_raises_and_closes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    def full(file: int, content: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    before = open_files()

    def write() -> None:
        with writers() as threads:
            file = NewFile(tmp_path / "file", threads, hashed=True)
            file.append(torch.zeros(parts * PART, dtype=torch.uint8))
            file.close()
            threads.wait()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert open_files() == before


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError), writers() as threads:
        NewFile(tmp_path / "file", threads, hashed=False)
    assert (tmp_path / "file").read_text() == "mine"
