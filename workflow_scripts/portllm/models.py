"""Obtaining a model: from the hub, from a directory laid out like the hub, or a local directory."""

import logging
from pathlib import Path

from portllm.checkpoints import check_directory
from portllm.errors import InputError

log = logging.getLogger(__name__)

# Weights as safetensors only; no pickle is fetched, so none can be loaded.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja")


def download(model: str, revision: str | None, directory: Path) -> str:
    """Fetch a model's safetensors and tokenizer files; return the commit that was fetched.

    The token comes from the environment, where huggingface_hub looks for it.
    Raises InputError with what to do for a model that is gated, missing or out of reach.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        commit = HfApi().model_info(model, revision=revision).sha
        snapshot_download(model, revision=commit, local_dir=directory, allow_patterns=list(WANTED))
    except GatedRepoError:
        raise InputError(
            f"{model} is gated: ask for access on its page of the hub, then set HF_TOKEN to a "
            "token of the account that was given it"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{model} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"the hub has no model {model!r}, or it is private and HF_TOKEN gives no access to it"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise InputError(f"{model} could not be fetched from the hub: {error}") from error
    return commit or "unknown"


def link(source: Path, directory: Path) -> None:
    """Fill `directory` with links to the files of a local model, which are not copied."""
    check_directory(source, "model")
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in WANTED):
            (directory / path.name).symlink_to(path.resolve())
