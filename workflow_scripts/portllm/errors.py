"""The error for unusable input, and helpers that word error messages."""

import difflib
import os
import re
import reprlib
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


LONGEST = 4000
"""Characters of an error message. Names in a damaged file have any length."""


class InputError(Exception):
    """The user's input cannot be used. Programs print the message as one line, no traceback."""

    def __str__(self) -> str:
        """Escape characters that would end the line or control the terminal."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]} …"
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def worded(error: InputError | OSError) -> str:
    """Return the message of bad input, or of a file system, such as a missing right, in a line."""
    if isinstance(error, OSError) and error.filename is not None:
        error = InputError(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return str(error)


def shown(value: Any) -> str:
    """Return a value as an error message quotes it: short, whatever its size and depth."""
    return _SHORT.repr(value)


def nearest(name: str, options: Iterable[str]) -> str:
    """Suggest a correction for an unknown name, as the end of an error message.

    Returns:
        "nearest: x" for the most similar option, else "known: a, b, …" with up to eight options.
    """
    known = [str(option) for option in options]
    # Comparing takes up to a millisecond, and much longer for long names. A name of less than a
    # third or more than three times the length cannot reach the cutoff.
    name = str(name)[:200]
    similar = [option for option in known if len(name) <= 3 * len(option) <= 9 * len(name)]
    similar.sort(key=lambda option: abs(len(option) - len(name)))
    close = difflib.get_close_matches(name, similar[:5000], n=1, cutoff=0.5)
    if close:
        return f"nearest: {close[0]}"
    shown = ", ".join(known[:8]) or "none"
    return f"known: {shown}" + (", …" if len(known) > 8 else "")


HOST_MEMORY = "out of host memory; raise mem_mb of the stage under resources"

_DEVICE = re.compile(r"OutOfMemoryError|(CUDA|HIP)( error:)? out of memory|STATUS_ALLOC_FAILED")
# The last two alternatives are what torch's launcher prints about a killed process.
_HOST = re.compile(
    r"\bMemoryError\b|DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory"
    r"|Signal 9 \(SIGKILL\)|exitcode\s*: -9\b"
)
_AMOUNTS = re.compile(r"[Tt]ried to allocate [\d.,]+ \w+|total capacity of [\d.,]+ \w+")


def out_of_memory(output: str, *, memory_advice: str = "") -> str | None:
    """Recognise an out-of-memory error in a program's output.

    Args:
        output: the error message, or the last lines of a log.
        memory_advice: settings that reduce the program's GPU memory.

    Returns:
        One line that names the memory (device or host) and what to change; None for other errors.
    """
    amounts = ", ".join(dict.fromkeys(_AMOUNTS.findall(output)))
    if _DEVICE.search(output):
        advice = memory_advice or "a smaller batch"
        details = f" ({amounts})" if amounts else ""
        return f"out of device memory{details}; try {advice}, or a larger device"
    return HOST_MEMORY if _HOST.search(output) else None
