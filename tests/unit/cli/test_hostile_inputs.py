"""Merging and porting of damaged or hostile files: one line and status 1, and nothing written."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "-1e39", "1" + "0" * 400, '"16"'])
@pytest.mark.parametrize("key", ["lora_alpha", "alpha_pattern", "r"])
def test_numbers_of_an_adapters_configuration_are_finite(
    place: Path, portllm: Run, key: str, value: str
) -> None:
    path = place / "patch" / "adapter_config.json"
    config = {**json.loads(path.read_text()), key: "VALUE"}
    value = f'{{"q_proj": {value}}}' if key == "alpha_pattern" else value
    path.write_text(json.dumps(config).replace('"VALUE"', value))
    for arguments in (["check"], ["merge", "--output", "merged"], ["port", "--output", "merged"]):
        error = portllm(*arguments)
        assert is_one_line(error), error
        assert f"error: patch/adapter_config.json: {key}" in error
        assert "expected a finite number" in error
    assert not (place / "merged").exists()


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e308"])
def test_weights_of_patches_are_finite(place: Path, portllm: Run, weight: str) -> None:
    for method in ("direct", "ties"):
        error = portllm("merge", f"--weight={weight}", "--method", method, "--output", "merged")
        assert is_one_line(error), error
        assert error.startswith("error: --weight: found ")
    assert not (place / "merged").exists()


def test_a_weight_times_a_scale_is_finite(place: Path, portllm: Run) -> None:
    change_json(
        place / "patch" / "adapter_config.json", lambda config: config.update(lora_alpha=1e30)
    )
    for method in ("direct", "ties"):
        error = portllm("merge", "--weight", "1e30", "--method", method, "--output", "merged")
        assert is_one_line(error), error
        assert "scale of the patch (its weight times lora_alpha/r): found 5." in error
    # This scale is finite, but the sum is not.
    adapter = place / "patch" / "adapter_model.safetensors"
    name = f"base_model.model.{EDITED.removesuffix('.weight')}.lora_B.weight"
    set_first_number(adapter, name, 1e38)
    error = portllm("merge", "--weight", "1e2", "--output", "merged")
    assert is_one_line(error), error
    assert "base/model-" in error
    assert "the sum with the patch is NaN or too large for float32" in error
    assert not (place / "merged").exists()


def set_first_number(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_a_patch_changes_are_finite(
    place: Path, portllm: Run, dtype: torch.dtype, value: float
) -> None:
    for shard in (place / "base").glob("*.safetensors"):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    names = json.loads((place / "base" / INDEX).read_text())["weight_map"]
    # The rest of a base is copied and not looked at, as docs/reliability.md says.
    copied = "model.embed_tokens.weight"
    set_first_number(place / "base" / names[copied], copied, value)
    assert portllm("merge", "--output", "copied") == ""
    set_first_number(place / "base" / names[EDITED], EDITED, value)
    for method in ("direct", "ties"):
        error = portllm("merge", "--method", method, "--output", "merged")
        assert error == (
            f"error: base/{names[EDITED]}: {EDITED}: found NaN or infinity, expected finite "
            "numbers to add a patch to"
        )
    assert not (place / "merged").exists()


@pytest.mark.parametrize(
    ("options", "tensor"),
    [
        ({}, "self_attn.q_proj.lora_B.weight"),
        ({"use_dora": True}, "self_attn.q_proj.lora_magnitude_vector"),
        ({"modules_to_save": ["q_proj"], "target_modules": ["v_proj"]}, "self_attn.q_proj.weight"),
    ],
)
def test_tensors_of_an_adapter_are_finite(
    place: Path, portllm: Run, options: dict[str, Any], tensor: str
) -> None:
    shutil.rmtree(place / "patch")
    tiny.save_adapter(place / "patch", place / "base", **options)
    name = f"base_model.model.model.layers.1.{tensor}"
    set_first_number(place / "patch" / "adapter_model.safetensors", name, float("nan"))
    methods = ["direct"] if options else ["direct", "scaled", "ties"]
    for method in methods:
        for command_name in ("merge", "port"):
            error = portllm(command_name, "--method", method, "--output", "out")
            assert error == (
                f"error: patch/adapter_model.safetensors: {name}: found NaN or infinity, "
                "expected finite numbers"
            )
    assert not (place / "out").exists()


def test_a_ported_adapter_is_finite(place: Path, portllm: Run) -> None:
    scaled = ("--method", "scaled", "--parameter", "scale=1e308")
    error = portllm("port", *scaled, "--output", "out")
    assert is_one_line(error), error
    assert "after the transplant method: found NaN or infinity" in error
    assert not (place / "out").exists()
