"""Merging and porting of damaged or hostile files: one line and status 1, and nothing written."""

import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import run_program
from safetensors.torch import load_file, save_file

from portllm.cli import main as command
from portllm.cli import transplant
from portllm.data import fetching
from portllm.storage import files
from portllm.weights import module_patterns
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


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def another_manifest(directory: Path) -> None:
    (directory / "thesis.tex").write_text("mine")
    (directory / "manifest.json").write_text('{"stage": "transplant", "content": {}}')


def an_added_file(directory: Path) -> None:
    (directory / "folder").mkdir()
    (directory / "folder" / "thesis.tex").write_text("mine")


def an_added_link(directory: Path) -> None:
    (directory / "results").symlink_to(directory.parent)


def a_changed_file(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def another_stage(directory: Path) -> None:
    change_json(directory / "manifest.json", lambda content: content.update(stage="train_patch"))


@pytest.mark.parametrize(
    ("is_merge", "change", "message"),
    [
        (False, another_manifest, "manifest.json is not that of a transplant"),
        (True, an_added_file, "manifest.json does not list folder/thesis.tex"),
        (True, an_added_link, "manifest.json does not list results"),
        (True, a_changed_file, "config.json has 2 bytes, expected "),
        (True, another_stage, "manifest.json is not that of a transplant"),
    ],
)
def test_only_an_own_output_is_replaced(
    place: Path, portllm: Run, is_merge: bool, change: Callable[[Path], None], message: str
) -> None:
    output = place / "merged"
    if is_merge:
        # An own output is replaced, also in a second run.
        assert [portllm("merge", "--output", "merged") for _ in range(2)] == ["", ""]
    else:
        output.mkdir()
    change(output)
    before = contents(output)
    for name in ("merge", "port"):
        error = portllm(name, "--output", "merged")
        assert is_one_line(error), error
        assert error.startswith("error: merged: already exists and was not written by portllm")
        assert message in error
    assert contents(output) == before


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["base"], "base: contains an input"),
        (["base/merged"], "base/merged: is inside the input base"),
        (["patch/merged"], "patch/merged: is inside the input patch"),
        (["out", "out/two"], "one output contains the other"),
        (["link/two/three", "out/two"], "one output contains the other"),
    ],
)
def test_outputs_are_apart_from_inputs_and_each_other(
    place: Path, portllm: Run, outputs: list[str], message: str
) -> None:
    (place / "out").mkdir()
    (place / "link").symlink_to("out")
    before = contents(place)
    patches = ("patch",) * len(outputs)
    error = portllm("merge", "--output", *outputs, patch=patches)
    assert is_one_line(error), error
    assert message in error
    assert contents(place) == before


def test_a_port_inside_the_merged_checkpoint_is_an_error(
    place: Path, portllm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["transplant.py", "--patch", "patch", "--base", "base"]
    monkeypatch.setattr("sys.argv", [*words, "--merged", "out", "--adapter", "out/port"])
    with pytest.raises(SystemExit) as exit_:
        transplant.main("Transplant.")
    assert str(exit_.value).startswith("error: out/port and out: one output contains the other")
    assert not (place / "out").exists()


def test_an_output_that_holds_the_files_of_the_base_is_an_error(place: Path, portllm: Run) -> None:
    assert portllm("merge", "--output", "merged") == ""
    (place / "linked").mkdir()
    fetching.link(place / "merged", place / "linked")
    before = contents(place / "merged")
    error = portllm("merge", "--output", "merged", base="linked")
    assert is_one_line(error), error
    assert "merged: contains an input" in error
    assert contents(place / "merged") == before


def test_a_mount_point_is_not_replaced(place: Path, portllm: Run) -> None:
    # The kernel renames no directory at which something is mounted, after hours of merging.
    for name in ("source", "out", "out/bound"):
        (place / name).mkdir()
    mount = ["mount", "--bind", str(place / "source"), str(place / "out" / "bound")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to bind-mount (root)")
    try:
        for output in ("out/bound", "out"):
            error = portllm("merge", "--output", output)
            assert is_one_line(error), error
            assert f"{output}: {place}/out/bound is a mount point, which cannot be" in error
    finally:
        subprocess.run(["umount", mount[-1]], check=True)


def test_a_bind_mount_of_the_base_is_not_replaced(place: Path, portllm: Run) -> None:
    # As an own output, so that only its identity protects it.
    assert portllm("merge", "--output", "merged") == ""
    (place / "elsewhere").mkdir()
    mount = ["mount", "--bind", str(place), str(place / "elsewhere")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to bind-mount (root)")
    try:
        before = contents(place / "merged")
        error = portllm("merge", "--output", "elsewhere/merged", base="merged")
        assert is_one_line(error), error
        assert "elsewhere/merged: contains an input" in error
        error = portllm("merge", "--output", "elsewhere/new/two", "new", patch=("patch", "patch"))
        assert "one output contains the other" in error
        assert contents(place / "merged") == before
    finally:
        subprocess.run(["umount", str(place / "elsewhere")], check=True)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_link_out_of_the_model_is_not_copied(place: Path, portllm: Run, name: str) -> None:
    link = place / "base" / name
    (place / "secret").write_text(link.read_text() if link.exists() else "{}")
    link.unlink(missing_ok=True)
    link.symlink_to("../secret")
    for output in (["--dry-run"], []):
        error = portllm("merge", *output, "--output", "merged")
        assert is_one_line(error), error
        assert error.startswith(f"error: base/{name}: found a link to {place / 'secret'}, expected")
    # A manifest that came with the link does not know the content.
    (place / "base" / "manifest.json").write_text(
        json.dumps({"content_hash": "0", "content": {name: "0"}, "sizes": {}})
    )
    assert f"base/{name}: found a link" in portllm("merge", "--output", "merged")
    assert not (place / "merged").exists()


def test_only_files_with_the_names_of_companions_are_copied(place: Path, portllm: Run) -> None:
    (place / "secret").write_text("mine")
    for name in ("tokenizer.env", "tokenizer_key.pem", "notes.json"):
        (place / "base" / name).symlink_to("../secret")
    (place / "base" / "tokenizer_files").mkdir()
    (place / "base" / "chat.jinja").write_text("template")
    (place / "base" / "chat_template.jinja").unlink(missing_ok=True)
    (place / "base" / "chat_template.jinja").symlink_to("chat.jinja")
    assert portllm("merge", "--output", "merged") == ""
    copied = contents(place / "merged")
    assert copied["chat_template.jinja"] == b"template"
    assert b"mine" not in copied.values()
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names <= copied.keys()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_companion_that_is_no_file_is_an_error(place: Path, portllm: Run, name: str) -> None:
    (place / "base" / name).unlink()
    os.mkfifo(place / "base" / name)
    error = portllm("merge", "--output", "merged")
    assert error == f"error: base/{name}: expected a regular file"


def test_links_of_the_hubs_cache_and_of_a_study_are_followed(place: Path, portllm: Run) -> None:
    repository = place / "models--owner--base"
    snapshot = repository / "snapshots" / "1234"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in (place / "base").iterdir():
        shutil.copy(path, repository / "blobs" / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    assert portllm("merge", "--output", "merged", base=str(snapshot)) == ""
    done = run_program("fetch_model.py", "--path", str(place / "base"), "--output", "linked")
    assert done.returncode == 0, done.stderr
    assert (place / "linked" / "config.json").is_symlink()
    assert portllm("merge", "--output", "again", base="linked") == ""
    expected = contents(place / "merged")
    written = contents(place / "again")
    assert written.keys() == expected.keys()
    same = written.keys() - {"manifest.json"}
    assert {name: written[name] for name in same} == {name: expected[name] for name in same}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4}, "lora_A.weight: found rank 2, expected 4 (r or rank_pattern in "),
        ({"r": 0}, "lora_A.weight: found rank 2, expected 0 (r or rank_pattern in "),
        ({"rank_pattern": {"q_proj": 3}}, "q_proj.lora_A.weight: found rank 2, expected 3 "),
        ({"alpha_pattern": {"([a-z.0-9_]+)*!": 3}}, "alpha_pattern: found '([a-z.0-9_]+)*!', "),
        ({"rank_pattern": {r"[\w.]*" * 12 + "!": 3}}, "rank_pattern: found '[\\\\w.]*"),
        ({"target_modules": "(.|.)*!"}, "target_modules: found '(.|.)*!', expected a regular "),
        ({"modules_to_save": ["(.|.)*!"]}, "modules_to_save: found '(.|.)*!', expected a regular "),
        ({"alpha_pattern": {"(q_proj": 3}}, "alpha_pattern: found '(q_proj', expected a regular "),
        ({"target_modules": [["q_proj"]]}, "target_modules: found [['q_proj']], expected texts"),
        ({"use_rslora": "no"}, "use_rslora: found 'no', expected true or false"),
        ({"base_model_name_or_path": [5]}, "base_model_name_or_path: found [5], expected a text"),
        (None, "found [], expected an object"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern: found ['q_proj'], expected an object"),
    ],
)
def test_ranks_and_patterns_fit_the_tensors(
    place: Path,
    portllm: Run,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any] | None,
    message: str,
) -> None:
    monkeypatch.setattr(module_patterns, "CPU_SECONDS", 0.1)
    path = place / "patch" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps([] if change is None else {**config, **change}))
    for arguments in (["check"], ["merge", "--output", "merged"], ["port", "--output", "merged"]):
        error = portllm(*arguments)
        assert is_one_line(error), error
        assert error.startswith("error: patch/adapter_")
        assert message in error
    assert not (place / "merged").exists()


def change_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def overlap(header: dict[str, Any]) -> None:
    first, second, *_ = sorted(
        (entry for name, entry in header.items() if name != "__metadata__"),
        key=lambda entry: entry["data_offsets"],
    )
    second["data_offsets"][0] = first["data_offsets"][0]


def first_entry(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


@pytest.mark.parametrize(
    "change",
    [
        overlap,
        lambda header: first_entry(header).update(shape=[1]),
        lambda header: first_entry(header).update(shape=[-1, "a"]),
        lambda header: first_entry(header).update(data_offsets=[0]),
        lambda header: first_entry(header).update(data_offsets=[10**30, 10**31]),
        lambda header: first_entry(header).update(dtype="F1"),
        lambda header: first_entry(header).pop("dtype") and None,
        lambda header: dict.fromkeys(header, 5),
        list,
    ],
)
def test_what_the_safetensors_library_refuses_is_an_error(
    place: Path, portllm: Run, change: Callable[[dict[str, Any]], Any]
) -> None:
    names = json.loads((place / "base" / INDEX).read_text())["weight_map"].values()
    count = {name: len(load_file(place / "base" / name)) for name in names}
    shard = place / "base" / max(count, key=count.__getitem__)
    adapter = place / "patch" / "adapter_model.safetensors"
    for file in (shard, adapter):
        original = file.read_bytes()
        change_header(file, change)
        for name in ("merge", "port"):
            if file == shard and name == "port":
                continue  # which reads no more of the base than the shapes of its weights
            error = portllm(name, "--output", "out")
            assert is_one_line(error), error
            place_named = (str(file.relative_to(place)), "does not fit", "the adapter's factors")
            assert any(text in error for text in place_named), error
        file.write_bytes(original)
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["../secret", "ABSOLUTE", "folder/../../secret"])
def test_a_manifest_names_files_of_its_directory_only(place: Path, portllm: Run, name: str) -> None:
    (place / "secret").write_text("mine")
    name = str(place / "secret") if name == "ABSOLUTE" else name
    (place / "base" / "folder").mkdir()
    manifest = place / "base" / "manifest.json"
    manifest.write_text(json.dumps({"content_hash": "0", "sizes": {name: 4}}))
    error = portllm("merge", "--output", "merged")
    assert is_one_line(error), error
    assert f"base is damaged: its manifest names {name}, which is outside of it" in error
    assert not (place / "merged").exists()
    content = {name: "0"}
    files.write_json(
        manifest, {"content": content, "content_hash": files.hash_value(content), "sizes": {}}
    )
    done = run_program("check_results.py", str(place / "base"), "--contents")
    assert f"its manifest names {name}, which is outside of it" in done.stdout + done.stderr
