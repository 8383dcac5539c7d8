"""What /proc says about processes."""

from collections.abc import Iterator
from pathlib import Path


def _fields(process: int) -> list[str]:
    """Read the fields of /proc/PID/stat from the third on; empty if there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def all_processes() -> Iterator[int]:
    """Yield the ids of all processes."""
    yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def parent(process: int) -> int:
    """Return the id of the parent; 0 if there is no such process."""
    fields = _fields(process)
    return int(fields[1]) if fields else 0


def is_stopped(process: int) -> bool:
    """Whether a process is stopped, as by Ctrl-Z or a debugger."""
    fields = _fields(process)
    return bool(fields) and fields[0] in "Tt"


def start_time(process: int) -> str | None:
    """Return when a process started, which tells it from a later process with the same id."""
    fields = _fields(process)
    return None if not fields or fields[0] in "ZX" else fields[19]


def variable(process: int, name: str) -> str | None:
    """Read a variable of the environment with which a process started.

    Returns:
        Its value; None if it is not set, or the process is another user's.
    """
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{name}=".encode()
    values = (entry[len(prefix) :] for entry in entries if entry.startswith(prefix))
    return next((value.decode(errors="replace") for value in values), None)
