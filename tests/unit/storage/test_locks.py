"""Locks on files: who gets them, and what a removed lock file does."""

import os
import threading
from pathlib import Path

from portllm.storage import locks


def test_a_lock_is_on_the_file_that_bears_the_name(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    first = locks.wait_for_lock(path, lambda: None)
    waits, descriptors = threading.Event(), []
    thread = threading.Thread(
        target=lambda: descriptors.append(locks.wait_for_lock(path, waits.set))
    )
    thread.start()
    assert waits.wait(10)
    # The first holder finishes and removes its directory.
    path.unlink()
    path.parent.rmdir()
    os.close(first)
    thread.join(10)
    assert os.path.samestat(path.stat(), os.fstat(descriptors[0]))
    assert locks.try_lock(path) is None
