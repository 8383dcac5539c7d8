"""Entries of the shared cache: private, whole, of a trusted owner, checked by content."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portllm.errors import InputError
from portllm.snakemake_hooks import cache_entries, cache_links, output_cache
from portllm.snakemake_hooks.cache_entries import Access, DamagedEntryError, ForeignEntryError
from portllm.storage import manifests

PRIVATE = Access()
WEIGHTS = b"weights" * 1000


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    directory = tmp_path / "results" / "patch"
    (directory / "sub").mkdir(parents=True)
    (directory / "adapter.safetensors").write_bytes(WEIGHTS)
    (directory / "sub" / "config.json").write_text("{}")
    cost = manifests.Meter().read()
    manifests.write_for_directory(directory, stage="test", parameters={}, inputs={}, cost=cost)
    return directory


@pytest.fixture
def entry(tmp_path: Path, artefact: Path) -> Path:
    (tmp_path / "cache").mkdir()
    entry = tmp_path / "cache" / "key"
    cache_entries.store(artefact, entry, PRIVATE)
    return entry


def modes(entry: Path) -> set[int]:
    return {path.lstat().st_mode & 0o7777 for path in (entry, *entry.rglob("*"))}


def test_an_entry_is_private_whatever_the_umask(entry: Path) -> None:
    assert modes(entry) == {0o700, 0o600}


def test_a_group_reads_what_is_shared_with_it_and_nobody_else(
    tmp_path: Path, artefact: Path
) -> None:
    entry = tmp_path / "key"
    cache_entries.store(artefact, entry, Access(os.getgid()))
    assert modes(entry) == {0o750, 0o640}


def test_an_unchanged_entry_is_accepted_without_hashing_weights_again(
    tmp_path: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    hash_file = cache_entries.files.hash_file

    def record(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(cache_entries.files, "hash_file", record)
    entry, results = tmp_path / "key", artefact.parent
    checked = cache_entries.store(artefact, entry, PRIVATE)
    cache_links.link(artefact, entry, checked, results)
    assert list(cache_links.damaged(results, update=True)) == []
    assert hashed == ["manifest.json"]


def flip(entry: Path) -> None:
    (entry / "content" / "adapter.safetensors").write_bytes(b"W" + WEIGHTS[1:])


def cut(entry: Path) -> None:
    os.truncate(entry / "content" / "adapter.safetensors", 10)


def lose(entry: Path) -> None:
    (entry / "content" / "sub" / "config.json").unlink()


def lose_record(entry: Path) -> None:
    (entry / "entry.json").unlink()


def cut_record(entry: Path) -> None:
    os.truncate(entry / "entry.json", 20)


def empty_record(entry: Path) -> None:
    (entry / "entry.json").write_text('{"files": [1]}')


def edit_manifest(entry: Path) -> None:
    manifest = entry / "content" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("test", "tset"))


def add_file(entry: Path) -> None:
    (entry / "content" / "tokenizer.json").write_text("{}")


def nest(entry: Path) -> None:
    (entry / "key").mkdir()
    (entry / "key" / "file").touch()


def add_link(entry: Path) -> None:
    (entry / "content" / "link").symlink_to("/etc/passwd")


def make_fifo(entry: Path) -> None:
    lose_record(entry)
    os.mkfifo(entry / "entry.json")


DAMAGES: dict[Callable[[Path], None], str] = {
    flip: "the content of adapter.safetensors has changed",
    cut: "adapter.safetensors has 10 bytes, expected 7,000",
    lose: "sub/config.json is missing",
    lose_record: "entry.json: no such file",
    cut_record: "entry.json: invalid JSON",
    empty_record: "entry.json does not list sizes and hashes",
    edit_manifest: "the content of manifest.json has changed",
    add_file: "content/tokenizer.json was not stored",
    nest: "key/file was not stored",
    add_link: "content/link is not a regular file",
    make_fifo: "entry.json is not a regular file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_refused(entry: Path, damage: Callable[[Path], None]) -> None:
    damage(entry)
    with pytest.raises(DamagedEntryError, match=DAMAGES[damage]):
        cache_entries.check(entry, PRIVATE, contents=True)


@pytest.mark.parametrize("damage", [flip, cut, lose], ids=lambda damage: damage.__name__)
def test_a_linked_artefact_notices_that_its_entry_changed(
    entry: Path, artefact: Path, damage: Callable[[Path], None]
) -> None:
    results = artefact.parent
    checked = cache_entries.check(entry, PRIVATE, contents=True)
    cache_links.link(artefact, entry, checked, results)
    assert list(cache_links.damaged(results, update=False)) == []
    damage(entry)
    ((path, problem),) = cache_links.damaged(results, update=False)
    assert path == artefact
    assert problem.split()[-1] in ("cache", "7,000", "nowhere")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to other users")
def test_entries_of_other_users_need_consent(entry: Path) -> None:
    os.chown(entry / "content" / "adapter.safetensors", 12345, 54321)
    with pytest.raises(ForeignEntryError, match="belongs to user with id 12345"):
        cache_entries.check(entry, PRIVATE, contents=True)
    cache_entries.check(entry, Access(54321), contents=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to other users")
def test_a_cache_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    for program in (*output_cache.PROGRAMS, output_cache.PLUGIN):
        (scripts / program).parent.mkdir(parents=True, exist_ok=True)
        (scripts / program).touch()
    environment = {output_cache.VARIABLE: str(tmp_path / "cache")}
    output_cache.prepare(dict(environment), scripts)
    (folder,) = (tmp_path / "cache").iterdir()
    folder.chmod(0o777)
    output_cache.prepare(dict(environment), scripts)
    assert folder.stat().st_mode & 0o7777 == 0o700
    os.chown(folder, 12345, 54321)
    with pytest.raises(InputError, match="belongs to user with id 12345"):
        output_cache.prepare(dict(environment), scripts)


def test_storing_twice_keeps_the_first_entry_and_leaves_nothing_else(
    entry: Path, artefact: Path
) -> None:
    (artefact / "adapter.safetensors").unlink()
    (artefact / "adapter.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(FileExistsError):
        cache_entries.store(artefact, entry, PRIVATE)
    assert (entry / "content" / "adapter.safetensors").read_bytes() == WEIGHTS
    assert list(entry.parent.iterdir()) == [entry]
    cache_entries.check(entry, PRIVATE, contents=True)


def test_a_vanished_entry_leaves_the_artefact(entry: Path, artefact: Path) -> None:
    checked = cache_entries.check(entry, PRIVATE, contents=True)
    entry.rename(entry.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError):
        cache_links.link(artefact, entry, checked, artefact.parent)
    assert (artefact / "adapter.safetensors").read_bytes() == WEIGHTS


def test_a_copy_that_differs_is_not_stored(
    entry: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another file system, where there are no hard links."""
    monkeypatch.setattr(os, "link", lambda source, target: Path("/nowhere").stat())
    copyfile = cache_entries.shutil.copyfile

    def copy_badly(source: str, target: str) -> None:
        copyfile(source, target)
        if source.endswith("safetensors"):
            Path(target).write_bytes(b"W" + WEIGHTS[1:])

    other = entry.with_name("other")
    cache_entries.store(artefact, other, PRIVATE)
    cache_entries.check(other, PRIVATE, contents=True)
    monkeypatch.setattr(cache_entries.shutil, "copyfile", copy_badly)
    with pytest.raises(OSError, match="the copy differs from the original"):
        cache_entries.store(artefact, entry.with_name("another"), PRIVATE)
    assert {path.name for path in entry.parent.iterdir()} == {"key", "other"}


def test_only_the_entry_that_was_checked_is_quarantined(entry: Path, artefact: Path) -> None:
    inode = entry.lstat().st_ino
    moved = cache_entries.quarantine(entry, inode, "its reason", PRIVATE)
    assert "its reason" in Path(f"{moved}.reason.txt").read_text()
    assert moved.lstat().st_ino == inode
    cache_entries.store(artefact, entry, PRIVATE)
    with pytest.raises(FileNotFoundError):
        cache_entries.quarantine(entry, inode, "its reason", PRIVATE)
    cache_entries.check(entry, PRIVATE, contents=True)
