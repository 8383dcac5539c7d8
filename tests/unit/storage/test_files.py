"""Artefacts appear whole or not at all, and manifests say what they are."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.errors import InputError, nearest
from portllm.storage import files, manifests


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
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


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".artefact.partial-999999999"
    left.mkdir()
    (left / "half").write_text("half")
    with files.whole_directory(tmp_path / "artefact") as directory:
        (directory / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_the_memory_of_who_started_a_program_is_not_its_own() -> None:
    ballast = b"x" * 300_000_000
    code = "from portllm.storage import manifests; print(manifests.Meter().read().peak_host_bytes)"
    scripts = str(PROJECT / "workflow_scripts")
    # A fork, as the shells of jobs are: what a spawned program inherits is its parent's size.
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
    """Replace a directory; the process dies in its first call of a function that removes."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with files.whole_directory(target) as directory:
        (directory / "index").write_text("new")
        (directory / "weights").write_text("new")
        setattr(files.shutil if function == "rmtree" else os, function, die)


@pytest.mark.parametrize("function", ["rmtree", "unlink", "rmdir"])
def test_a_process_killed_while_it_replaces_leaves_no_half(tmp_path: Path, function: str) -> None:
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


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    files.write_json(target, {"old": True})
    with pytest.raises(TypeError):
        files.write_json(target, {"new": object()})
    assert files.read_json(target) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_cut_off_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"cells": [1, 2')
    with pytest.raises(InputError, match=r"result\.json: not whole JSON"):
        files.read_json(path)
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(InputError, match=r"rows\.jsonl: line 2 is not whole JSON"):
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


def test_content_hashes_tell_contents_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        (directory / "weights").write_text("same")
    assert manifests.content_hash(first) == manifests.content_hash(second)
    (second / "weights").write_text("other")
    assert manifests.content_hash(first) != manifests.content_hash(second)


def test_what_says_that_the_disk_is_full() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "results/x.json")
    assert files.told_disk_is_full(full) == "results/x.json: No space left on device"
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = full
    assert files.told_disk_is_full(wrapped) == "results/x.json: No space left on device"
    torch = RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")
    assert files.told_disk_is_full(torch) == "No space left on device"
    assert files.told_disk_is_full(OSError(errno.ENOENT, "No such file", "x")) is None
    assert files.told_disk_is_full(ValueError("other")) is None


def test_sizes_tell_what_is_missing_or_cut_off(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/one").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    sizes = files.sizes(tmp_path)
    assert sizes == {"empty": 0, "shards/one": 5}
    assert files.misfit(tmp_path, sizes) is None
    (tmp_path / "shards/one").write_bytes(b"1234")
    assert files.misfit(tmp_path, sizes) == "shards/one has 4 bytes, 5 were written"
    (tmp_path / "empty").unlink()
    assert files.misfit(tmp_path, sizes) == "empty is missing"


def test_nearest() -> None:
    assert nearest("learning_rat", ["rank", "learning_rate"]) == "nearest: learning_rate"
    assert nearest("zzz", ["rank", "alpha"]) == "known: rank, alpha"
    assert nearest("zzz", []) == "known: none"


def test_a_linked_directory_is_replaced_and_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "kept").touch()
    (tmp_path / "mine").symlink_to(tmp_path / "shared")
    with files.whole_directory(tmp_path / "mine") as directory:
        (directory / "new").touch()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["kept"]
