"""Entries of the shared cache: stored whole, private, and checked before they are used.

An entry is a directory with the files of an artefact (`content/`) and their sizes and hashes
(`entry.json`). It appears in one rename, so it is complete, or something damaged it later.
"""

import errno
import grp
import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.storage import files, manifests, temporary

RECORD = "entry.json"
CONTENT = "content"
QUARANTINE = "quarantine"
STAGING = ".storing-"
"""Prefix of the directories in which entries are put together."""
GROUP = "PORTLLM_CACHE_GROUP"
"""Environment variable: the group that shares the cache. Without it, only its owner does."""
TIMESTAMP = ".snakemake_timestamp"

Checked = dict[str, dict[str, Any]]
"""For each file of an entry, by relative path, its `size`, `sha256` and `fingerprint`."""


class DamagedEntryError(Exception):
    """An entry is not what was stored."""


class ForeignEntryError(Exception):
    """An entry belongs to a user whom this user has not agreed to share with."""


@dataclass(frozen=True)
class Access:
    """Who reads the entries that this user stores, and whose entries this user takes.

    Attributes:
        group: id of the group; None if the cache is this user's alone.
    """

    group: int | None = None

    @property
    def folder_mode(self) -> int:
        """The permissions of the folder of all entries."""
        # Members add entries (setgid: for the group) but cannot replace those of others (sticky).
        return 0o700 if self.group is None else 0o3770

    @property
    def directory_mode(self) -> int:
        """The permissions of directories in an entry."""
        return 0o700 if self.group is None else 0o750

    @property
    def file_mode(self) -> int:
        """The permissions of files in an entry."""
        return 0o600 if self.group is None else 0o640

    def trusts(self, status: os.stat_result) -> bool:
        """Whether a file or directory with this status may be used."""
        return status.st_uid == os.getuid() or status.st_gid == self.group

    def apply(self, path: Path, mode: int) -> None:
        """Give a path to the group, if there is one, and set its permissions."""
        if self.group is not None:
            os.chown(path, -1, self.group)
        # Not left to mkdir or open, which apply the umask. After chown, which clears setgid.
        path.chmod(mode)


def access(environment: Mapping[str, str]) -> Access:
    """Read from the environment with whom this user shares the cache.

    Raises:
        InputError: there is no such group.
    """
    name = environment.get(GROUP)
    if not name:
        return Access()
    try:
        return Access(grp.getgrnam(name).gr_gid)
    except KeyError:
        raise InputError(f"{GROUP}: no group is called {name!r}") from None


def owner_of(status: os.stat_result) -> str:
    """Return the name of a file's owner, or the id if it has no name here."""
    try:
        return pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        return f"with id {status.st_uid}"


def fingerprint(status: os.stat_result) -> list[int]:
    """Return what changes whenever a file's content is changed or the file is replaced."""
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


def store(artefact: Path, entry: Path, access: Access) -> Checked:
    """Add an artefact to the cache. The artefact stays where it is.

    Args:
        artefact: a finished directory.
        entry: the entry to create.
        access: who may use it.

    Returns:
        What `check` would return before anybody else could see the entry.

    Raises:
        FileExistsError: there is an entry already, from another run.
        OSError: the entry cannot be written.
    """
    with temporary.owned_directory(entry.parent, STAGING) as (staging, _):
        new = staging / entry.name
        content = new / CONTENT
        copied: set[str] = set()

        def link_or_copy(source: str, target: str) -> None:
            if not _link(source, target):
                shutil.copyfile(source, target)
                copied.add(str(Path(target).relative_to(content)))

        # Hard links: without them, a kill could leave the only copy in the temporary directory.
        ignore = shutil.ignore_patterns(TIMESTAMP)
        shutil.copytree(artefact, content, ignore=ignore, copy_function=link_or_copy)
        expected = _known_hashes(content)
        known = {name: value for name, value in expected.items() if name not in copied}
        hashes = files.hash_files(content, known=known)
        if not expected.items() <= hashes.items():
            raise OSError(errno.EIO, "the copy differs from the original", str(entry))
        sizes = files.sizes(content)
        record = {name: {"size": sizes[name], "sha256": value} for name, value in hashes.items()}
        files.write_json(new / RECORD, {"files": record})
        for folder, _, names in os.walk(new):
            access.apply(Path(folder), access.directory_mode)
            for name in names:
                access.apply(Path(folder, name), access.file_mode)
        checked: Checked = {
            name: {**part, "fingerprint": fingerprint((content / name).stat())}
            for name, part in record.items()
        }
        try:
            new.rename(entry)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(error.errno, "there is an entry", str(entry)) from None
            raise
    return checked


def _link(source: str, target: str) -> bool:
    """Create a hard link; return whether that is possible here."""
    try:
        if not Path(source).is_symlink():
            os.link(source, target)
            return True
    except OSError:
        pass  # another file system, or one without hard links
    return False


def _known_hashes(content: Path) -> dict[str, str]:
    """Return the hashes in an artefact's manifest, so that weights are not read again."""
    try:
        manifest = files.read_object(content / manifests.NAME, sizes=dict, content=dict)
    except InputError:
        return {}
    if files.size_mismatch(content, manifest.get("sizes", {})):
        return {}
    return manifest.get("content", {})


def check(entry: Path, access: Access, *, contents: bool) -> Checked:
    """Check that an entry is what was stored, by a trusted user.

    Args:
        entry: the entry.
        access: whose entries are trusted.
        contents: also compare the hash of every file. This reads the entry once, about one second
            per GB.

    Returns:
        Its files; a `fingerprint` was taken before the content was read.

    Raises:
        FileNotFoundError: there is no such entry.
        ForeignEntryError: a part of it belongs to another user.
        DamagedEntryError: it has been cut, changed or extended.
    """
    if not stat.S_ISDIR(entry.lstat().st_mode):
        raise DamagedEntryError("it is not a directory")
    actual: dict[str, os.stat_result] = {}
    for path, status in _walk(entry):
        if not access.trusts(status):
            raise ForeignEntryError(f"it belongs to user {owner_of(status)}")
        if not stat.S_ISDIR(status.st_mode):
            actual[str(path.relative_to(entry))] = status
    # Checked before they are opened: a FIFO would block.
    for name, status in actual.items():
        if not stat.S_ISREG(status.st_mode):
            raise DamagedEntryError(f"{name} is not a regular file")
    recorded = _read_record(entry)
    content = {name: actual.get(f"{CONTENT}/{name}") for name in recorded}
    extra = sorted(set(actual) - {f"{CONTENT}/{name}" for name in recorded} - {RECORD})
    if extra:
        raise DamagedEntryError(f"{extra[0]} was not stored")
    for name, status in content.items():
        if status is None:
            raise DamagedEntryError(f"{name} is missing")
        if status.st_size != recorded[name]["size"]:
            size = recorded[name]["size"]
            raise DamagedEntryError(f"{name} has {status.st_size:,} bytes, expected {size:,}")
        recorded[name]["fingerprint"] = fingerprint(status)
        if contents and files.hash_file(entry / CONTENT / name) != recorded[name]["sha256"]:
            raise DamagedEntryError(f"the content of {name} has changed")
    return recorded


def _walk(entry: Path) -> Iterator[tuple[Path, os.stat_result]]:
    yield entry, entry.lstat()
    for folder, subfolders, names in os.walk(entry):
        for name in (*subfolders, *names):
            yield Path(folder, name), Path(folder, name).lstat()


def _read_record(entry: Path) -> dict[str, dict[str, Any]]:
    try:
        recorded = files.read_json(entry / RECORD)["files"]
        return {
            str(name): {"size": int(part["size"]), "sha256": str(part["sha256"])}
            for name, part in recorded.items()
        }
    except InputError as error:
        raise DamagedEntryError(str(error).removeprefix(f"{entry}/")) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedEntryError(f"{RECORD} does not list sizes and hashes") from None


def quarantine(entry: Path, inode: int, reason: str, access: Access) -> Path:
    """Move a damaged entry out of the way, with the reason in a file next to it.

    Args:
        entry: the entry.
        inode: its inode when it was checked. Another run may have replaced it since.
        reason: what is wrong with it.
        access: who may read what is moved.

    Returns:
        Its new path.

    Raises:
        OSError: it cannot be moved; FileNotFoundError if another run has done so.
    """
    if entry.lstat().st_ino != inode:
        raise FileNotFoundError(errno.ENOENT, "another run has replaced it", str(entry))
    folder = entry.parent / QUARANTINE
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        access.apply(folder, access.folder_mode)
    # With the process: two runs may find the same damage at the same time.
    moved = folder / f"{entry.name}-{time.strftime('%Y%m%d-%H%M%S')}-{inode}-{os.getpid()}"
    note = Path(f"{moved}.reason.txt")
    note.write_text(f"{entry}: {reason}\n")
    try:
        access.apply(note, access.file_mode)
        entry.rename(moved)
        if moved.lstat().st_ino != inode:
            moved.rename(entry)  # replaced between the check and the rename
            raise FileNotFoundError(errno.ENOENT, "another run has replaced it", str(entry))
    except OSError:
        note.unlink(missing_ok=True)
        raise
    return moved
