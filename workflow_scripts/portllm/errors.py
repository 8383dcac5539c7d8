"""Errors that are the user's to mend, and the words that help to mend them."""

import difflib
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
