"""Merging and porting of damaged or hostile files: one line and status 1, and nothing written."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.numpy import load_file, save_file

from portllm.cli import main as command
from portllm.weights.checkpoints import INDEX

Run = Callable[..., str]
EDITED = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `base` in several shards and a `patch` for it. Copy, do not change."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny.save_model(directory / "base", max_shard_size="10KB")
    tiny.save_adapter(directory / "patch", base)
    return directory


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """A directory with copies of `base` and `patch`, for a test to damage."""
    for name in ("base", "patch"):
        shutil.copytree(models / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def portllm(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the `portllm` command in `place`, in this process; return its error, empty for none."""
    monkeypatch.chdir(place)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")

    def run(*arguments: str, patch: tuple[str, ...] = ("patch",), base: str = "base") -> str:
        name, *rest = arguments
        words = ["portllm", name, "--patch", *patch, "--base", base, *rest]
        monkeypatch.setattr("sys.argv", words)
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            command.main()
        except SystemExit as error:
            # Python prints a text and exits with status 1; `check` has printed already.
            return error.code if isinstance(error.code, str) else capsys.readouterr().err.strip()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ""

    return run


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def is_one_line(error: str) -> bool:
    return error.startswith("error: ") and "\n" not in error


@pytest.mark.parametrize("name", ["../elsewhere/x.safetensors", "ABSOLUTE", "folder/x.safetensors"])
def test_an_index_names_files_of_its_directory_only(place: Path, portllm: Run, name: str) -> None:
    index = place / "base" / INDEX
    shard = json.loads(index.read_text())["weight_map"][EDITED]
    name = str(place / "elsewhere" / "x.safetensors") if name == "ABSOLUTE" else name
    target = place / "base" / name
    target.parent.mkdir(exist_ok=True)
    shutil.move(place / "base" / shard, target)

    def rename(content: dict[str, Any]) -> None:
        moved = {key: name for key, value in content["weight_map"].items() if value == shard}
        content["weight_map"].update(moved)

    change_json(index, rename)
    for arguments in (["check"], ["merge", "--output", "merged"]):
        error = portllm(*arguments)
        assert is_one_line(error), error
        assert f"base/{INDEX}: weight_map." in error
        assert f"found '{name}', expected the name of a file in the same directory" in error
    assert not (place / "merged").exists()


def test_a_written_index_names_the_files_that_hold_the_weights(place: Path, portllm: Run) -> None:
    index = place / "base" / INDEX

    def swap(content: dict[str, Any]) -> None:
        names = content["weight_map"]
        names[EDITED] = next(name for name in names.values() if name != names[EDITED])

    change_json(index, swap)
    assert portllm("merge", "--output", "merged") == ""
    written = json.loads((place / "merged" / INDEX).read_text())["weight_map"]
    shards = (place / "merged").glob("*.safetensors")
    assert written == {name: shard.name for shard in shards for name in load_file(shard)}


def test_an_index_of_weights_that_no_file_holds_is_an_error(place: Path, portllm: Run) -> None:
    index = place / "base" / INDEX

    def add(content: dict[str, Any]) -> None:
        content["weight_map"]["absent.weight"] = content["weight_map"][EDITED]

    change_json(index, add)
    error = portllm("merge", "--output", "merged")
    assert is_one_line(error), error
    assert f"base/{INDEX}: weight_map.absent.weight: found 'model-" in error
    assert not (place / "merged").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found [], expected an object with weight_map"),
        ({"weight_map": 5}, "weight_map: found 5, expected an object"),
        ({"weight_map": {"a": 5}}, "weight_map.a: found 5, expected the name of a file"),
        ({"weight_map": {}}, "weight_map: found {}, expected an object"),
    ],
)
def test_an_index_of_the_wrong_type_is_an_error(
    place: Path, portllm: Run, content: Any, message: str
) -> None:
    (place / "base" / INDEX).write_text(json.dumps(content))
    error = portllm("check")
    assert is_one_line(error), error
    assert f"base/{INDEX}: {message}" in error


@pytest.fixture
def dense_port(place: Path, portllm: Run) -> Path:
    assert portllm("port", "--method", "ties", "--output", "dense") == ""
    return place / "dense"


@pytest.mark.parametrize("name", ["../patch", "ABSOLUTE", "patches/../../patch", "link", 5])
def test_a_port_recipe_names_patches_in_its_directory_only(
    place: Path, portllm: Run, dense_port: Path, name: str | int
) -> None:
    (dense_port / "link").symlink_to(place / "patch")
    name = str(place / "patch") if name == "ABSOLUTE" else name

    def rename(recipe: dict[str, Any]) -> None:
        recipe["patches"][0]["directory"] = name

    change_json(dense_port / "transplant.json", rename)
    error = portllm("merge", "--output", "merged", patch=("dense",))
    assert is_one_line(error), error
    assert "dense/transplant.json: patches[0].directory: found " in error
    assert "expected a directory inside dense" in error
    assert not (place / "merged").exists()


def test_a_port_recipe_without_patches_is_an_error(
    place: Path, portllm: Run, dense_port: Path
) -> None:
    change_json(dense_port / "transplant.json", lambda recipe: recipe.update(patches=[]))
    for arguments in (["check"], ["merge", "--output", "merged"], ["port", "--output", "merged"]):
        error = portllm(*arguments, patch=("dense",))
        assert is_one_line(error), error
        assert "dense/transplant.json: patches: found none, expected one or more" in error
    assert not (place / "merged").exists()


def test_an_adapter_without_factors_is_an_error(place: Path, portllm: Run) -> None:
    save_file({}, place / "patch" / "adapter_model.safetensors")
    for arguments in (["check"], ["merge", "--output", "merged"]):
        error = portllm(*arguments)
        assert is_one_line(error), error
        assert "patch/adapter_model.safetensors: found no LoRA factors" in error
    assert not (place / "merged").exists()
