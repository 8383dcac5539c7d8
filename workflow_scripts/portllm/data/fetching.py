"""Obtain a model or adapter from the hub, a mirror of the hub, or a local directory."""

import argparse
import glob
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from portllm.data import hub
from portllm.errors import InputError, nearest
from portllm.storage.files import hash_file, hash_value
from portllm.weights.checkpoints import check_directory

log = logging.getLogger(__name__)

HASHED_BYTES = 2**20
"""How much of each file of a mirror says what it holds."""


@dataclass(frozen=True)
class KeptFiles:
    """File name patterns of what is fetched or linked from a model repository."""

    weights: tuple[str, ...]
    others: tuple[str, ...]

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in (*self.weights, *self.others))

    def is_weights(self, name: str) -> bool:
        """Whether the file holds weights."""
        return any(fnmatchcase(name, pattern) for pattern in self.weights)

    def among(self, names: Iterable[str], repository: str) -> list[str]:
        """Select the files to keep from all files of a repository or directory.

        Raises:
            InputError: no weights in safetensors are among them.
        """
        # Folders (original/, onnx/, gguf/) hold the same model in other formats.
        names = sorted(name for name in names if "/" not in name)
        if not any(self.is_weights(name) for name in names):
            pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
            hint = f" ({pickled[0]} is a pickle, which is never fetched)" if pickled else ""
            expected = " or ".join(self.weights)
            raise InputError(f"{repository} has no weights: expected {expected}{hint}")
        return [name for name in names if self._matches(name)]


# Only safetensors: a pickle that is not fetched cannot be loaded. These are the names that
# transformers loads; others hold the same weights again (Mistral's consolidated.safetensors).
MODEL = KeptFiles(
    weights=("model.safetensors", "model-*-of-*.safetensors"),
    others=("*.json", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt"),
)
# The tokenizer says which vocabulary an adapter was trained with.
ADAPTER = KeptFiles(
    weights=("adapter_model.safetensors",), others=("adapter_config.json", "tokenizer.json")
)


def _fetch_weights(model: str, commit: str, name: str) -> None:
    """Download one file of weights into the hub's cache; resume an earlier process's download.

    huggingface_hub resumes within a process only: its partial files have random names and are
    removed on an error, so an interrupted job would download an 18 GB shard from the start. But it
    accepts any complete blob in its cache. So the blob is written here, with the client's own
    download function, from a partial file with a fixed name.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    from portllm.data import hub_client

    url = hf_hub_url(model, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    size, etag = metadata.size or 0, metadata.etag
    if etag is None or not 0 < size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        return  # snapshot_download has another protocol for larger files
    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=model, repo_type="model")
    blob = cache / folder / "blobs" / etag
    partial = blob.with_name(f"{etag}.portllm.incomplete")
    lock = cache / ".locks" / folder / f"{etag}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        usable = partial.exists() and partial.stat().st_size <= size
        with partial.open("ab" if usable else "wb") as file:
            if file.tell():
                log.info("%s: resuming at %d of %d bytes", name, file.tell(), size)
            # The URL of the hub, because that of its storage expires. httpx drops the token on
            # the redirect to another host.
            try:
                http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=name,
                )
            except hub_client.DamagedError:
                partial.unlink()
                raise
        # The ETag of a file in large-file storage is its SHA-256.
        if len(etag) == 64 and hash_file(partial) != etag:
            partial.unlink()
            raise InputError(f"{model}: the download of {name} was corrupt and is removed; rerun")
        partial.rename(blob)


def _link_lastingly(source: Path, target: Path) -> None:
    # A hard link survives when the hub's cache is cleared or a mirror moves. A symbolic link would
    # dangle while the version still looks complete to Snakemake, but it is the only choice across
    # file systems (set HF_HOME to the file system of the results to avoid it).
    source = source.resolve()
    try:
        target.hardlink_to(source)
    except OSError:
        log.info("%s is a symbolic link: keep %s", target.name, source.parent)
        target.symlink_to(source)


@dataclass(frozen=True)
class Snapshot:
    """Files of a commit of a model repository, in the hub's cache.

    `directory` holds the `files`; it is that of the subfolder where one was asked for.
    """

    directory: Path
    commit: str
    files: list[str]


def snapshot(name: str, revision: str | None, kept: KeptFiles, *, subfolder: str = "") -> Snapshot:
    """Bring the kept files of a repository, or of a folder in it, into the hub's cache.

    With HF_HUB_OFFLINE, the cache's files are used and no connection is made.

    Raises:
        InputError: the repository is gated, missing, unreachable or not in the cache, or holds no
            weights in safetensors.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    place = f"{name}/{prefix}".removesuffix("/")
    with hub.explained("model", name, revision):
        if constants.HF_HUB_OFFLINE:
            try:
                # It refuses a cached snapshot that lacks files of these patterns. `*.json` would
                # match files in folders, which are never fetched.
                names = (*kept.weights, *(other for other in kept.others if "*" not in other))
                patterns = [glob.escape(prefix) + pattern for pattern in names]
                cached = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
            except LocalEntryNotFoundError:
                raise InputError(
                    f"the model {name} is not in the hub's cache, and HF_HUB_OFFLINE is set"
                ) from None
            directory = cached / prefix
            names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
            return Snapshot(directory, cached.name, kept.among(names, place))
        info = HfApi().model_info(name, revision=revision)
        paths = [file.rfilename for file in info.siblings or []]
        _check_subfolder(name, subfolder, paths)
        names = (path.removeprefix(prefix) for path in paths if path.startswith(prefix))
        files = kept.among(names, place)
        for file in filter(kept.is_weights, files):
            _fetch_weights(name, info.sha, prefix + file)
        patterns = [glob.escape(prefix + file) for file in files]
        # By branch or tag, not by commit: the cache then resolves the name offline, too.
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    return Snapshot(cached / prefix, cached.name, files)


def _check_subfolder(name: str, subfolder: str, paths: Iterable[str]) -> None:
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if subfolder and subfolder.strip("/") not in folders:
        known = sorted(folders - {"."})
        raise InputError(f"{name} has no folder {subfolder!r}; {nearest(subfolder, known)}")


def download(
    name: str, revision: str | None, directory: Path, kept: KeptFiles, *, subfolder: str = ""
) -> str:
    """Fetch the kept files of a model or an adapter; return the commit.

    Files go to the hub's cache, where a rerun resumes an interrupted download, and are linked into
    `directory`. huggingface_hub reads the token from the environment.

    Raises:
        InputError: the repository is gated, missing or unreachable, or lacks the subfolder; the
            message says what to do.
    """
    fetched = snapshot(name, revision, kept, subfolder=subfolder)
    for file in fetched.files:
        _link_lastingly(fetched.directory / file, directory / file)
    return fetched.commit


def add_source(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the options that locate a model or an adapter; `kind` is the noun in their help."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", help=f"{kind}'s id on the hub")
    source.add_argument("--path", type=Path, help="a local directory")
    parser.add_argument("--revision", help="commit, branch or tag on the hub")
    parser.add_argument("--subfolder", default="", help="folder in the repository or directory")
    parser.add_argument("--hub-mirror", help="local directory laid out like the hub, used instead")


def local_directory(arguments: argparse.Namespace) -> Path | None:
    """Return the local directory that the options of `add_source` name; None for the hub.

    Raises:
        InputError: a mirror has no such repository, or the directory no such subfolder.
    """
    if arguments.path is None and arguments.hub_mirror:
        return in_mirror(arguments.hub_mirror, arguments.hub, arguments.subfolder)
    if arguments.path is None:
        return None
    return in_directory(arguments.path, arguments.subfolder)


def source_directory(source: dict[str, Any], mirror: str | None = None) -> Path | None:
    """Return where a source of a study is on this machine; None if it is on the hub.

    It need not exist.
    """
    if "path" in source:
        return Path(source["path"], source.get("subfolder", ""))
    if mirror is None or "hub" not in source:
        return None
    return Path(mirror, source["hub"], source.get("subfolder", ""))


def local_files(source: dict[str, Any], kept: KeptFiles) -> list[Path]:
    """List the files of a source's `path` that are kept.

    Empty for a source on the hub, and for one that is missing or unusable: the program that links
    it reports that.
    """
    directory = source_directory(source)
    return _kept_files(directory, kept) if directory else []


def mirrored_content(source: dict[str, Any], mirror: str | None, kept: KeptFiles) -> str | None:
    """Return a hash of what a mirror holds of a source on the hub; None where it is not needed.

    A revision names its content, so only a source without one is hashed: the name, size and
    beginning of each file, because whole models take minutes.
    """
    directory = source_directory(source, mirror)
    if directory is None or "hub" not in source or source.get("revision"):
        return None
    parts = []
    for path in _kept_files(directory, kept):
        with path.open("rb") as file:
            beginning = hashlib.sha256(file.read(HASHED_BYTES)).hexdigest()
        parts.append([path.name, path.stat().st_size, beginning])
    return hash_value(parts) if parts else None


def _kept_files(directory: Path, kept: KeptFiles) -> list[Path]:
    if not directory.is_dir():
        return []
    try:
        names = kept.among((path.name for path in directory.iterdir()), str(directory))
    except InputError:
        return []
    return [directory / name for name in names]


def source_parameters(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return the options of `add_source` as parameters for a manifest."""
    local = local_directory(arguments)
    parameters = {
        "hub": arguments.hub,
        "revision": arguments.revision,
        "path": str(local) if local else None,
    }
    return parameters | ({"subfolder": arguments.subfolder} if arguments.subfolder else {})


def in_mirror(mirror: str, model: str, subfolder: str = "") -> Path:
    """Return the directory of a model or adapter in a local mirror of the hub.

    Raises:
        InputError: the mirror does not have it.
    """
    path = Path(mirror, model)
    if not path.is_dir():
        raise InputError(f"hub_mirror {mirror} has no {model}")
    return in_directory(path, subfolder)


def in_directory(directory: Path, subfolder: str) -> Path:
    """Return a subfolder of a local directory, or the directory itself if `subfolder` is empty.

    Raises:
        InputError: there is no such subfolder.
    """
    path = directory / subfolder
    if subfolder and directory.is_dir() and not path.is_dir():
        folders = [entry.name for entry in sorted(directory.iterdir()) if entry.is_dir()]
        raise InputError(f"{directory} has no folder {subfolder!r}; {nearest(subfolder, folders)}")
    return path


def link(source: Path, directory: Path, *, from_mirror: bool = False) -> None:
    """Fill `directory` with links to the files of a local model.

    Links to a mirror are hard where they can be, so that the mirror may move.
    """
    check_directory(source, "model")
    for name in MODEL.among((path.name for path in source.iterdir()), str(source)):
        if from_mirror:
            _link_lastingly(source / name, directory / name)
        else:
            (directory / name).symlink_to((source / name).resolve())
