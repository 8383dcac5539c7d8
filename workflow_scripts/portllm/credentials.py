"""Keep credentials out of processes that need none.

A job that fetches or pushes needs a token. Every other job may run code that the study brings:
generators, functions and templates of tasks, plugins of Axolotl. That code finds no token in its
environment.

This is no sandbox: such code runs with the user's rights and can read the user's files.
"""

import os
import re
import sys
from collections.abc import Mapping

_NAME = re.compile(
    r"(^|_)(SECRETS?|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING)(_|$)"
    # At the end, because other names count tokens.
    r"|(^|_)TOKEN(_FILE|_PATH)?$|PASSW(OR)?D|API_?KEY|(^|_)KEY(_ID)?$",
    flags=re.IGNORECASE,
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")

HUB_TOKEN_FILE = "HF_TOKEN_PATH"
"""Environment variable: the file from which huggingface_hub reads a token."""


def names(environment: Mapping[str, str]) -> list[str]:
    """List the variables that hold a credential, judged by their names and by URLs in them."""
    return [
        name
        for name, value in environment.items()
        if _NAME.search(name) or _URL_WITH_PASSWORD.search(value)
    ]


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without credentials, and without the hub's token file."""
    hidden = set(names(environment))
    kept = {name: value for name, value in environment.items() if name not in hidden}
    return {**kept, HUB_TOKEN_FILE: os.devnull}


def drop() -> None:
    """Remove the credentials from this process's environment and from that of its children."""
    kept = without(os.environ)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
    # If it is imported already, it has read the variable.
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_TOKEN_PATH = os.devnull
