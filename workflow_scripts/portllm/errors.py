"""Errors that are the user's to mend, and the words that help to mend them."""

import difflib
import re
from collections.abc import Iterable


class InputError(Exception):
    """Something that the user gave cannot be used. The message is one line for people."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Say which of `options` is nearest to `name`, or what the options are when none is near."""
    known = [str(option) for option in options]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"nearest: {close[0]}"
    shown = ", ".join(known[:8]) or "none"
    return f"known: {shown}" + (", …" if len(known) > 8 else "")


HOST_MEMORY = "out of host memory; what to change: a larger mem_mb of the stage under resources"

_DEVICE = re.compile(r"OutOfMemoryError|(CUDA|HIP)( error:)? out of memory|STATUS_ALLOC_FAILED")
# The last two are torch's launcher on a process that was killed.
_HOST = re.compile(
    r"\bMemoryError\b|DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory"
    r"|Signal 9 \(SIGKILL\)|exitcode\s*: -9\b"
)
_AMOUNTS = re.compile(r"[Tt]ried to allocate [\d.,]+ \w+|total capacity of [\d.,]+ \w+")


def out_of_memory(said: str, *, lighter: str = "") -> str | None:
    """One line on which memory a program has run out of, by what it said last; None for neither.

    `lighter` is what would make it ask for less of the device's.
    """
    amounts = ", ".join(dict.fromkeys(_AMOUNTS.findall(said)))
    if _DEVICE.search(said):
        changes = lighter or "a smaller batch"
        asked = f" ({amounts})" if amounts else ""
        return f"out of device memory{asked}; what to change: {changes}, or a larger device"
    return HOST_MEMORY if _HOST.search(said) else None
