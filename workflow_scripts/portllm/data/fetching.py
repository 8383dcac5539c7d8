"""Obtaining a model: from the hub, from a directory laid out like the hub, or a local directory."""

import argparse
import glob
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from portllm.data import hub
from portllm.errors import InputError
from portllm.storage.files import hash_file
from portllm.weights.checkpoints import check_directory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptFiles:
    """Patterns of the files that are fetched or linked; no others are."""

    weights: tuple[str, ...]
    others: tuple[str, ...]

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in (*self.weights, *self.others))

    def is_weights(self, name: str) -> bool:
        """Whether a file is one of the weights."""
        return any(fnmatchcase(name, pattern) for pattern in self.weights)

    def among(self, names: Iterable[str], place: str) -> list[str]:
        """Those of the files in `place` that are kept.

        Raises InputError where no weights are among them.
        """
        # What lies in folders (original/, onnx/, gguf/) is the model in other formats.
        names = sorted(name for name in names if "/" not in name)
        if not any(self.is_weights(name) for name in names):
            pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
            hint = f" ({pickled[0]} is a pickle, which is never fetched)" if pickled else ""
            raise InputError(f"{place} has no weights in {' or '.join(self.weights)}{hint}")
        return [name for name in names if self._matches(name)]


# Weights as safetensors only; no pickle is fetched, so none can be loaded. The names are those
# that transformers loads: other *.safetensors are the same weights again (Mistral's consolidated).
MODEL = KeptFiles(
    weights=("model.safetensors", "model-*-of-*.safetensors"),
    others=("*.json", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt"),
)
ADAPTER = KeptFiles(weights=("adapter_model.safetensors",), others=("adapter_config.json",))


def _fetch_weights(model: str, commit: str, name: str) -> None:
    """Bring one file of weights into the hub's cache, from where an earlier process stopped.

    huggingface_hub resumes a file within a process only: its partial files have random names and
    are removed on an error, so a job that ends early in the last minute of an 18 GB shard would
    start it again. What lies complete in the cache's blobs it takes as it is; so the blob is put
    there, by the client's own download, from a partial file that keeps its name.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(model, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    size, etag = metadata.size or 0, metadata.etag
    if etag is None or not 0 < size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        return  # left to snapshot_download, which has another way for files as large as that
    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=model, repo_type="model")
    blob = cache / folder / "blobs" / etag
    partial = blob.with_name(f"{etag}.portllm.incomplete")
    lock = cache / ".locks" / folder / f"{etag}.lock"
    for place in (blob, lock):
        place.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        usable = partial.exists() and partial.stat().st_size <= size
        with partial.open("ab" if usable else "wb") as file:
            if file.tell():
                log.info("%s: %d of %d bytes are here already", name, file.tell(), size)
            # The hub's address, not that of its storage, which expires. A redirect to another
            # host loses the token on the way (httpx).
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )
        # The ETag of a file in large-file storage is its SHA-256.
        if len(etag) == 64 and hash_file(partial) != etag:
            partial.unlink()
            raise InputError(f"{model}: {name} arrived damaged and was removed; run again")
        partial.rename(blob)


def _place(source: Path, target: Path) -> None:
    # A hard link outlives the clearing of the hub's cache; a symbolic link would dangle, and the
    # version would look complete to Snakemake. Across file systems there is only the symbolic one
    # (set HF_HOME to the results' file system to avoid it).
    source = source.resolve()
    try:
        target.hardlink_to(source)
    except OSError:
        log.info("%s is linked by name; keep the hub's cache (%s)", target.name, source.parent)
        target.symlink_to(source)


def _download(name: str, revision: str | None, directory: Path, kept: KeptFiles) -> str:
    from huggingface_hub import HfApi, snapshot_download

    with hub.explained("model", name, revision):
        info = HfApi().model_info(name, revision=revision)
        chosen = kept.among((file.rfilename for file in info.siblings or []), name)
        for file in filter(kept.is_weights, chosen):
            _fetch_weights(name, info.sha, file)
        patterns = [glob.escape(file) for file in chosen]
        snapshot = snapshot_download(name, revision=info.sha, allow_patterns=patterns)
    for file in chosen:
        _place(Path(snapshot, file), directory / file)
    return info.sha


def download(model: str, revision: str | None, directory: Path) -> str:
    """Fetch a model's safetensors and tokenizer files; return the commit that was fetched.

    They go to the hub's cache, where a later run finds what an interrupted one has left, and are
    linked into `directory`. The token comes from the environment, where huggingface_hub looks for
    it. Raises InputError with what to do for a model that is gated, missing or out of reach.
    """
    return _download(model, revision, directory, MODEL)


def download_adapter(adapter: str, revision: str | None, directory: Path) -> str:
    """Fetch a LoRA adapter's configuration and safetensors; as `download` does a model."""
    return _download(adapter, revision, directory, ADAPTER)


def add_source(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that say where a model or an adapter comes from."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", help=f"{what}'s id on the hub")
    source.add_argument("--path", type=Path, help="a local directory")
    parser.add_argument("--revision", help="commit, branch or tag on the hub")
    parser.add_argument("--hub-mirror", help="directory laid out like the hub that replaces it")


def local_directory(arguments: argparse.Namespace) -> Path | None:
    """The directory that the options of `add_source` name; None where it is the hub's."""
    if arguments.path is None and arguments.hub_mirror:
        return in_mirror(arguments.hub_mirror, arguments.hub)
    return arguments.path


def local_files(source: dict[str, Any], mirror: str | None, kept: KeptFiles) -> list[Path]:
    """The files that a source of the study (`path`, or `hub` in a mirror) is linked from.

    None where it comes from the hub or is not there, which the program that links it says.
    """
    place = source.get("path") or (mirror and "hub" in source and str(Path(mirror, source["hub"])))
    if not place or not Path(place).is_dir():
        return []
    try:
        names = kept.among((path.name for path in Path(place).iterdir()), place)
    except InputError:
        return []
    return [Path(place, name) for name in names]


def asked_for(arguments: argparse.Namespace) -> dict[str, str | None]:
    """What the options of `add_source` say, for a manifest."""
    local = local_directory(arguments)
    return {
        "hub": arguments.hub,
        "revision": arguments.revision,
        "path": str(local) if local else None,
    }


def in_mirror(mirror: str, model: str) -> Path:
    """Directory of a model or adapter in a directory laid out like the hub.

    Raises InputError where it is not there.
    """
    path = Path(mirror, model)
    if not path.is_dir():
        raise InputError(f"hub_mirror {mirror} holds no {model}")
    return path


def link(source: Path, directory: Path) -> None:
    """Fill `directory` with links to the files of a local model, which are not copied."""
    check_directory(source, "model")
    for name in MODEL.among((path.name for path in source.iterdir()), str(source)):
        (directory / name).symlink_to((source / name).resolve())
