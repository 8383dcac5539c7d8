"""Resolve dataset revisions on the hub, and explain the hub's errors in one line."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from portllm.errors import InputError

Kind = Literal["model", "dataset"]

# httpx logs every URL, and those of the hub's storage contain signatures.
logging.getLogger("httpx").setLevel(logging.WARNING)


def _page(kind: Kind, name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


def _gated(kind: Kind, name: str) -> str:
    if os.environ.get("HF_TOKEN"):
        return (
            f"{name} is gated, and the account of HF_TOKEN has no access to it: ask for access at "
            f"{_page(kind, name)} and rerun when it is granted (a fine-grained token also needs "
            "the permission to read gated repositories)"
        )
    return (
        f"{name} is gated: ask for access at {_page(kind, name)}, then set the environment "
        "variable HF_TOKEN to a token of that account"
    )


def _explanation(error: Exception, kind: Kind, name: str, revision: str | None) -> str:
    import httpx
    from huggingface_hub import constants, errors

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return _gated(kind, name)
    # The datasets package raises another class with this text.
    if match := re.match(r"Dataset '(.+?)' is a gated dataset", message):
        return _gated(kind, match[1])
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {kind} {name} has no revision {revision!r}; see {_page(kind, name)}/commits"
    unauthorised = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if unauthorised and "Invalid credentials" in message:
        return f"the hub rejects HF_TOKEN ({kind} {name}): unset it, or create a new token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {kind} {name!r}, or it is private and HF_TOKEN gives no access; "
            "check the name"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"cannot fetch the {kind} {name}: HF_HUB_OFFLINE is set"
    if isinstance(error, (httpx.TransportError, ConnectionError)):
        return (
            f"cannot fetch the {kind} {name} from {constants.ENDPOINT}: {message} "
            "(rerun to resume the download)"
        )
    return f"cannot load the {kind} {name}: {message}"


@contextmanager
def explained(kind: Kind, name: str, revision: str | None = None) -> Iterator[None]:
    """Convert errors of huggingface_hub and datasets to InputErrors that say what to do."""
    import httpx

    from portllm.data import hub_client

    hub_client.install()
    try:
        yield
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise InputError(_explanation(error, kind, name, revision)) from error


def dataset_commit(name: str, revision: str | None) -> str:
    """Resolve a branch, tag or commit of a dataset to the current commit.

    Raises:
        InputError: the hub has no such dataset or revision.
    """
    from huggingface_hub import HfApi

    with explained("dataset", name, revision):
        return HfApi().dataset_info(name, revision=revision).sha or "unknown"


def is_dataset_id(path: str | None) -> bool:
    """Whether `datasets` would look for `path` on the hub: not a builder's name, not local."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as BUILDERS

    return path is not None and path not in BUILDERS and not Path(path).exists()
