"""`portllm` with ids of the hub for `--base` and `--patch`, from a small hub on loopback."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import tiny
from conftest import PROJECT
from hub_server import Hub

from portllm.storage import files


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serving() as served:
        yield served


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A repository of a model in a subfolder, and one of an adapter, each with pickles."""
    root = tmp_path_factory.mktemp("repositories")
    model = tiny.save_model(root / "models" / "step 7" / "main", max_shard_size="15KB")
    tiny.save_adapter(root / "patch", model)
    (model / "pytorch_model.bin").write_bytes(b"not to be fetched")
    (root / "models" / "model.safetensors").write_bytes(b"not to be fetched")
    (root / "patch" / "adapter_model.bin").write_bytes(b"not to be fetched")
    return root / "models", root / "patch"


def portllm(
    hub: Hub, home: Path, *arguments: object, **more: str
) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    return subprocess.run(
        [PROJECT / ".venvs/eval/bin/python", "-m", "portllm", *map(str, arguments)],
        cwd=home,
        env={
            **kept,
            "PYTHONPATH": str(PROJECT / "workflow_scripts"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home / "hub"),
            "OMP_NUM_THREADS": "1",
            **more,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_model_and_adapter_come_from_the_hub(
    hub: Hub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    models, patch = folders
    base = hub.add("models", "owner/versions", models, branches=("main", "v2"))
    adapter = hub.add("models", "owner/patch", patch)
    ids = ("--base", "owner/versions@v2:step 7/main", "--patch", "owner/patch")
    done = portllm(hub, tmp_path, "merge", *ids, "--output", "merged")
    assert done.returncode == 0, done.stderr
    manifest = files.read_json(tmp_path / "merged" / "manifest.json")
    assert manifest["sources"] == {
        "version": {
            "hub": "owner/versions",
            "revision": base.commit,
            "subfolder": "step 7/main",
        },
        "patch": {"hub": "owner/patch", "revision": adapter.commit},
    }
    fetched = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert not [path for path in fetched if path.endswith(".bin")]
    assert not hub.asked_for("main/model.safetensors")

    # The same as from directories.
    local = ("--base", models / "step 7" / "main", "--patch", patch)
    done = portllm(hub, tmp_path, "merge", *local, "--output", "local")
    assert done.returncode == 0, done.stderr
    for shard in (tmp_path / "local").glob("*.safetensors"):
        assert (tmp_path / "merged" / shard.name).read_bytes() == shard.read_bytes()

    # A port names its base as PEFT would find it.
    done = portllm(hub, tmp_path, "port", *ids, "--output", "port")
    assert done.returncode == 0, done.stderr
    config = files.read_json(tmp_path / "port" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "owner/versions"
    assert config["revision"] == base.commit

    # What is in the cache is used offline.
    hub.repair()
    offline = portllm(hub, tmp_path, "check", *ids, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == "owner/patch fits owner/versions@v2:step 7/main (14 weights)\n"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("patch", "message", "variables"),
    [
        ("owner/absent", "the hub has no model 'owner/absent', or it is private", {}),
        ("owner/patch@v9", "the model owner/patch has no revision 'v9'", {}),
        ("owner/patch:folder", "owner/patch has no folder 'folder'", {}),
        (
            "owner/patch",
            "the model owner/patch is not in the hub's cache, and HF_HUB_OFFLINE is set",
            {"HF_HUB_OFFLINE": "1"},
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    hub: Hub,
    folders: tuple[Path, Path],
    tmp_path: Path,
    patch: str,
    message: str,
    variables: dict[str, str],
) -> None:
    models, adapter = folders
    hub.add("models", "owner/patch", adapter)
    base = models / "step 7" / "main"
    arguments = ("merge", "--base", base, "--patch", patch, "--output", "merged")
    done = portllm(hub, tmp_path, *arguments, **variables)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: --patch: {patch} is not a directory here, and {message}"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "merged").exists()


def test_a_directory_takes_precedence_and_a_mirror_replaces_the_hub(
    hub: Hub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    models, patch = folders
    base = models / "step 7" / "main"
    shutil.copytree(patch, tmp_path / "owner" / "patch")
    shutil.copytree(base, tmp_path / "mirror" / "owner" / "model" / "sub")
    arguments = ("--patch", "owner/patch", "--base", "owner/model:sub", "--hub-mirror", "mirror")
    done = portllm(hub, tmp_path, "check", *arguments)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    absent = portllm(hub, tmp_path, "check", *arguments[:3], "owner/absent", *arguments[4:])
    assert absent.stderr == (
        "error: --base: neither owner/absent nor mirror/owner/absent (--hub-mirror) exists\n"
    )


def test_the_stage_program_takes_hub_ids_too(
    hub: Hub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    models, patch = folders
    hub.add("models", "owner/patch", patch)
    program = PROJECT / "workflow_scripts" / "transplant.py"
    inputs = ["--patch", "owner/patch", "--base", models / "step 7" / "main"]
    done = subprocess.run(
        [PROJECT / ".venvs/eval/bin/python", program, "--check", *inputs],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stderr
