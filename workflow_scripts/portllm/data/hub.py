"""The hub: which commit a name stands for, and its errors as one line that says what to do."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from portllm.errors import InputError

Kind = Literal["model", "dataset"]

# httpx logs the address of every request, and those of the hub's storage carry signatures.
logging.getLogger("httpx").setLevel(logging.WARNING)


def _page(kind: Kind, name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


def _gated(kind: Kind, name: str) -> str:
    if os.environ.get("HF_TOKEN"):
        return (
            f"{name} is gated, and the account of HF_TOKEN has no access to it: ask for access at "
            f"{_page(kind, name)} and run again when it is granted (a fine-grained token also "
            "needs the permission to read gated repositories)"
        )
    return (
        f"{name} is gated: ask for access at {_page(kind, name)}, then set the environment "
        "variable HF_TOKEN to a token of the account that was given it"
    )


def _explanation(error: Exception, kind: Kind, name: str, revision: str | None) -> str:
    import httpx
    from huggingface_hub import constants, errors

    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return _gated(kind, name)
    # Of the same error, datasets keeps only the words.
    if found := re.match(r"Dataset '(.+?)' is a gated dataset", said):
        return _gated(kind, found[1])
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {kind} {name} has no revision {revision!r}; see {_page(kind, name)}/commits"
    refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if refused and "Invalid credentials" in said:
        return f"the hub does not accept HF_TOKEN ({kind} {name}): unset it, or make a new token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {kind} {name!r}, or it is private and HF_TOKEN gives no access to it; "
            "is the name right?"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"the {kind} {name} is to be fetched, but HF_HUB_OFFLINE is set"
    if isinstance(error, (httpx.TransportError, ConnectionError)):
        return (
            f"the {kind} {name} could not be fetched from {constants.ENDPOINT}: {said} "
            "(run again to go on; what has arrived is kept)"
        )
    return f"the {kind} {name} could not be loaded: {said}"


@contextmanager
def explained(kind: Kind, name: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of huggingface_hub and datasets into InputErrors that say what to do."""
    import httpx

    try:
        yield
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise InputError(_explanation(error, kind, name, revision)) from error


def dataset_commit(name: str, revision: str | None) -> str:
    """The commit that a dataset's branch, tag or commit stands for now.

    Raises InputError where there is none.
    """
    from huggingface_hub import HfApi

    with explained("dataset", name, revision):
        return HfApi().dataset_info(name, revision=revision).sha or "unknown"


def is_dataset_id(path: str | None) -> bool:
    """Whether `datasets` looks for a path on the hub: it is no builder's name and nothing local."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as BUILDERS

    return path is not None and path not in BUILDERS and not Path(path).exists()
