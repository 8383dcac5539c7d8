"""The files of a checkpoint besides its weights: configuration and tokenizer."""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from portllm.errors import InputError
from portllm.storage import manifests
from portllm.storage.file_systems import real_path
from portllm.storage.files import hash_file, read_json

PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "tokenizer.model.v*",  # Mistral's
    "tokenizer*.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
)


def list_companions(model: Path) -> list[Path]:
    """List a checkpoint's configuration and tokenizer files.

    A link could lead to any file of the user, whose content the copy would then publish. So a link
    is followed only to a companion in the same directory, to a blob of the hub's cache, or to the
    content that the directory's manifest records.

    Raises:
        InputError: a file with a companion's name is neither regular nor such a link.
    """
    paths = [path for path in sorted(model.iterdir()) if _is_companion_name(path.name)]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: expected a regular file")
        if path.is_symlink() and not _is_trusted(path):
            raise InputError(
                f"{path}: found a link to {real_path(path)}, expected a regular file; links out of "
                "a model's directory are not followed, so replace it by a copy"
            )
    return paths


def copy_companions(model: Path, directory: Path) -> None:
    """Copy a checkpoint's configuration and tokenizer files; see `list_companions`."""
    for path in list_companions(model):
        shutil.copyfile(path, directory / path.name)


def _is_companion_name(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def _is_trusted(link: Path) -> bool:
    target = real_path(link)
    if target.parent == real_path(link.parent):
        return _is_companion_name(target.name)
    if target.parent.name == "blobs" and target.parent.parent.name.startswith("models--"):
        return True
    manifest = link.parent / manifests.NAME
    if not manifest.is_file():
        return False
    # The workflow links models on the disk, and records their hashes. A manifest that came with
    # the link cannot have the hash of a file that its author does not know.
    content = read_json(manifest)
    recorded = content.get("content") if isinstance(content, dict) else None
    return isinstance(recorded, dict) and recorded.get(link.name) == hash_file(target)
