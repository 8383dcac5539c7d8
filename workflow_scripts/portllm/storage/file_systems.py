"""What file systems refuse or lack: full disks, mounted directories, links in a circle."""

import errno
import os
import re
import shutil
from pathlib import Path

from portllm.errors import InputError


def real_path(path: Path) -> Path:
    """Return an absolute path without links; `Path.resolve` raises for links in a circle."""
    return Path(os.path.realpath(path))


def check_no_mount(path: Path) -> None:
    """Raise InputError if something is mounted at a path or below.

    os.path.ismount does not see a bind mount within one file system.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    real = real_path(path)
    for line in mounts:
        name = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
        if Path(name).is_relative_to(real):
            raise InputError(
                f"{path}: {name} is a mount point, which cannot be replaced; choose a folder in it"
            )


# safetensors quotes the system's message; PyTorch's writers have their own.
_DISK_FULL_MESSAGES = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    "basic_ios::clear: iostream error",
)


def disk_full_message(error: BaseException | None) -> str | None:
    """Return a one-line message if an error, or its cause, is a full disk; else None.

    PyTorch and safetensors raise errors of their own without an errno, so their texts are matched.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}"
        if any(message in str(error) for message in _DISK_FULL_MESSAGES):
            return "No space left on device"
        error = error.__cause__ or error.__context__
    return None


def free_bytes(path: Path) -> int:
    """Return the free bytes on the file system of `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
