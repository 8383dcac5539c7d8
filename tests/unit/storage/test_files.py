"""Artefacts are written atomically, and manifests describe them."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.errors import InputError, nearest
from portllm.storage import file_systems, files, manifests


def test_a_failed_write_keeps_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with files.whole_directory(target) as directory:
        (directory / "old").write_text("old")

    def fail() -> None:
        with files.whole_directory(target) as directory:
            (directory / "new").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".artefact.partial-999999999"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with files.whole_directory(tmp_path / "artefact") as directory:
        (directory / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_peak_memory_excludes_the_parent_process() -> None:
    ballast = b"x" * 300_000_000
    code = "from portllm.storage import manifests; print(manifests.Meter().read().peak_host_bytes)"
    scripts = str(PROJECT / "workflow_scripts")
    # A preexec_fn forces a fork, as for the shells of jobs: the child inherits its parent's peak.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": scripts},
        preexec_fn=lambda: None,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1_000_000 < int(done.stdout) < len(ballast) / 2


def _killed_in(function: str, target: Path) -> None:
    """Replace a directory; the process kills itself in its first call of `function`."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with files.whole_directory(target) as directory:
        (directory / "index").write_text("new")
        (directory / "weights").write_text("new")
        setattr(files.shutil if function == "rmtree" else os, function, die)


@pytest.mark.parametrize("function", ["rmtree", "unlink", "rmdir"])
def test_a_process_killed_while_replacing_leaves_a_complete_directory(
    tmp_path: Path, function: str
) -> None:
    target = tmp_path / "artefact"
    with files.whole_directory(target) as directory:
        (directory / "index").write_text("old")
        (directory / "weights").write_text("old")
    process = multiprocessing.get_context("fork").Process(
        target=_killed_in, args=(function, target)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "index": "new",
        "weights": "new",
    }
    with files.whole_directory(target) as directory:
        (directory / "index").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    files.write_json(target, {"old": True})
    with pytest.raises(TypeError):
        files.write_json(target, {"new": object()})
    assert files.read_json(target) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_truncated_json_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"cells": [1, 2')
    with pytest.raises(InputError, match=r"result\.json: invalid JSON"):
        files.read_json(path)
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(InputError, match=r"rows\.jsonl: invalid JSON in line 2"):
        list(files.read_json_lines(lines))


def test_json_lines_round_trip(tmp_path: Path) -> None:
    rows = [{"text": "θ′ + Δθ\nnext"}, {"text": ""}]
    assert files.write_json_lines(tmp_path / "rows.jsonl", rows) == 2
    assert list(files.read_json_lines(tmp_path / "rows.jsonl")) == rows


def test_a_manifest_describes_its_directory(tmp_path: Path) -> None:
    meter = manifests.Meter()
    (tmp_path / "weights").write_text("w")
    (tmp_path / ".snakemake_timestamp").touch()
    manifests.write_for_directory(
        tmp_path,
        stage="patch",
        parameters={"rank": 8},
        inputs={"model": "abc"},
        cost=meter.read(),
        packages=("pytest", "no-such-package"),
    )
    written = json.loads((tmp_path / manifests.NAME).read_text())
    assert written["content"] == {"weights": files.hash_file(tmp_path / "weights")}
    assert written["packages"].keys() == {"python", "pytest"}
    assert written["cost"]["peak_host_bytes"] > 2**20
    assert written["cost"]["wall_seconds"] >= 0
    assert manifests.content_hash(tmp_path) == written["content_hash"]


def test_content_hashes_depend_on_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        (directory / "weights").write_text("same")
    assert manifests.content_hash(first) == manifests.content_hash(second)
    (second / "weights").write_text("other")
    assert manifests.content_hash(first) != manifests.content_hash(second)


def test_full_disk_errors_are_recognised() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "results/x.json")
    assert file_systems.disk_full_message(full) == "results/x.json: No space left on device"
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = full
    assert file_systems.disk_full_message(wrapped) == "results/x.json: No space left on device"
    torch = RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")
    assert file_systems.disk_full_message(torch) == "No space left on device"
    assert file_systems.disk_full_message(OSError(errno.ENOENT, "No such file", "x")) is None
    assert file_systems.disk_full_message(ValueError("other")) is None


def test_missing_and_truncated_files_are_found_by_size(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/one").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    sizes = files.sizes(tmp_path)
    assert sizes == {"empty": 0, "shards/one": 5}
    assert files.size_mismatch(tmp_path, sizes) is None
    (tmp_path / "shards/one").write_bytes(b"1234")
    assert files.size_mismatch(tmp_path, sizes) == "shards/one has 4 bytes, expected 5"
    (tmp_path / "empty").unlink()
    assert files.size_mismatch(tmp_path, sizes) == "empty is missing"


def test_nearest() -> None:
    assert nearest("learning_rat", ["rank", "learning_rate"]) == "nearest: learning_rate"
    assert nearest("zzz", ["rank", "alpha"]) == "known: rank, alpha"
    assert nearest("zzz", []) == "known: none"


def test_replacing_a_linked_directory_keeps_the_target(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    with files.whole_directory(tmp_path / "link") as directory:
        (directory / "new").touch()
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "invalid JSON (nested too deeply)"),
        (f"[{'9' * 5000}]", "invalid JSON (a number of over 4,300 digits)"),
        ('["\\ud800"]', "invalid JSON (text that is not Unicode)"),
        (b'["\xff"]', "found bytes that are not UTF-8"),
        ("[]", "found [], expected an object"),
        ('{"sizes": [1]}', "sizes: found [1], expected an object"),
        ('{"stage": true}', "stage: found True, expected a text or a number"),
        (None, "expected a regular file"),
    ],
)
def test_an_unusable_document_is_an_error_with_its_path(
    tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / "manifest.json"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        files.read_object(path, sizes=dict, stage=(str, float))
    assert str(error.value).startswith(f"{path}: {message}")
    if text is None:
        for read in (files.hash_file, lambda path: list(files.read_json_lines(path))):
            with pytest.raises(InputError, match="expected a regular file"):
                read(path)


def test_a_document_of_an_unusual_size_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST_DOCUMENT + 1)
    with pytest.raises(InputError, match=r"found 268,435,457 bytes, expected at most 268,435,456"):
        files.read_json(path)


def test_leftovers_of_killed_processes_of_this_host_are_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = [
        f"a/.model.partial-{host}-999999999",
        f"a/.table.csv.partial-{host}-999999999",
        f"b/.model.partial-replaced-{host}-999999999",
    ]
    kept = [
        f"a/.model.partial-{host}-{os.getpid()}",
        "a/.model.partial-elsewhere-999999999",
        "a/model",
    ]
    for name in (*dead, *kept):
        (tmp_path / name).mkdir(parents=True)
    removed = files.remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in removed} == set(dead)
    assert [name for name in (*dead, *kept) if (tmp_path / name).exists()] == kept
