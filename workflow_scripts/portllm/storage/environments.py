"""The Python environments of the jobs: which pinned packages each was built from.

`envs/make.sh NAME` builds `.venvs/NAME` from `envs/NAME.txt` and then writes the SHA-256 of that
file into the environment. An environment without it is incomplete.
"""

import sys
from enum import Enum
from pathlib import Path
from typing import Any

from portllm.storage.files import hash_file

MADE_FROM = "made_from"
CHECKOUT = Path(__file__).parents[3]
SHOWN_DIGITS = 12


class State(Enum):
    """How an environment compares to its pins."""

    MISSING = "missing"
    OUTDATED = "outdated"
    CURRENT = "current"


def installed_pins(environment: Path) -> str | None:
    """SHA-256 of the pins that an environment was built from; None for an incomplete one."""
    try:
        return (environment / MADE_FROM).read_text().strip() or None
    except OSError:
        return None


def state(name: str, checkout: Path) -> State:
    """Compare the environment `name` of a checkout with the checkout's pins."""
    environment = checkout / ".venvs" / name
    installed = installed_pins(environment)
    if installed is None or not (environment / "bin" / "python").exists():
        return State.MISSING
    current = installed == hash_file(checkout / "envs" / f"{name}.txt")
    return State.CURRENT if current else State.OUTDATED


def provenance(
    environment: Path = Path(sys.prefix), checkout: Path = CHECKOUT
) -> dict[str, Any] | None:
    """Describe the environment that runs this process, for a manifest.

    `pins` is the start of the SHA-256 of the pins it was built from, and `current` says whether
    these are the checkout's pins. Returns None for an environment that `envs/make.sh` didn't build.
    """
    installed = installed_pins(environment)
    if installed is None:
        return None
    pins = checkout / "envs" / f"{environment.name}.txt"
    return {
        "name": environment.name,
        "pins": installed[:SHOWN_DIGITS],
        "current": pins.is_file() and hash_file(pins) == installed,
    }
