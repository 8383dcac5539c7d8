"""The recipe for Axolotl, its process, and the checkpoint made from its output."""

import argparse
import math
import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import wait_for
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import evolve
from portllm.analysis import movement
from portllm.errors import InputError
from portllm.storage import manifests
from portllm.training import evolution, recipe_defaults, resuming
from portllm.weights import checkpoints
from portllm.weights.checkpoints import Checkpoint


def rendered(recipe: dict, overrides: dict | None = None) -> dict:
    return evolution.render(
        {**recipe, **(overrides or {})},
        model=Path("results/models/m/base"),
        corpus=Path("results/corpora/c.jsonl"),
        work=Path("results/checkpoints/evolve/key"),
        prepared=Path("results/prepared"),
        seed=7,
    )


def test_paths_seed_and_plugin_are_added_to_a_recipe() -> None:
    final = rendered({"datasets": [{"type": "alpaca"}], "learning_rate": 1})
    assert final["base_model"] == "results/models/m/base"
    assert final["datasets"] == [
        {"path": "results/corpora/c.jsonl", "ds_type": "json", "type": "alpaca"}
    ]
    assert final["seed"] == 7
    assert final["dataset_prepared_path"] == "results/prepared"
    assert final["output_dir"].startswith("results/checkpoints/evolve/key/")
    assert final["learning_rate"] == 1


def test_overrides_win_and_unknown_keys_pass() -> None:
    final = rendered({"learning_rate": 1}, {"learning_rate": 2, "deepspeed": "zero3.json"})
    assert final["learning_rate"] == 2
    assert final["deepspeed"] == "zero3.json"


def test_the_recipes_datasets_and_plugins_are_kept() -> None:
    mixed = [{"path": "other/data", "type": "completion"}, {"type": "alpaca"}]
    final = rendered({"datasets": mixed, "plugins": ["theirs.Plugin"]})
    assert final["datasets"][0] == mixed[0]
    assert final["datasets"][1]["path"] == "results/corpora/c.jsonl"
    assert final["plugins"] == ["theirs.Plugin", evolution.PLUGIN]


def test_telemetry_and_hub_access_are_off(tmp_path: Path) -> None:
    environment = evolution.environment(tmp_path / "cost.json")
    assert environment["AXOLOTL_DO_NOT_TRACK"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PYTHONHASHSEED"] == "0"


def test_several_devices_use_the_launcher() -> None:
    recipe = Path("axolotl.yaml")
    for devices in (0, 1):
        assert evolution.command("train", recipe, devices)[3:] == ["--launcher", "python"]
    words = evolution.command("train", recipe, 4)
    assert words[1:7] == ["train", "axolotl.yaml", "--launcher", "accelerate", "--", "--multi_gpu"]
    given = dict(pairwise(words[7:]))
    assert given["--num_processes"] == "4"
    # Two such jobs on one machine must not meet on one port.
    assert given["--main_process_port"] == "0"
    understood = launch_command_parser().parse_args([*words[6:], "train.py"])
    assert (understood.multi_gpu, understood.num_processes) == (True, 4)
    assert understood.training_script == "train.py"
    assert evolution.command("preprocess", recipe, 4)[1:] == ["preprocess", "axolotl.yaml"]


@pytest.mark.parametrize(("visible", "expected"), [("", 0), ("a", 1), ("a,b,c", 3)])
def test_axolotl_starts_one_process_per_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    asked = []

    def stand_in(*_: Any, devices: int, **__: Any) -> None:
        asked.append(devices)
        raise InputError("no Axolotl here")

    monkeypatch.setattr(evolution, "run", stand_in)
    monkeypatch.setattr(recipe_defaults, "current_device", lambda: recipe_defaults.Device((9, 0)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "corpus.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "recipe.yaml").write_text("micro_batch_size: 2\n")
    arguments = argparse.Namespace(
        model=tiny.save_model(tmp_path / "model"),
        corpus=tmp_path / "corpus.jsonl",
        recipe=[tmp_path / "recipe.yaml"],
        overrides={},
        seed=1,
        prepared=None,
        work=tmp_path / "work",
        output=tmp_path / "evolved",
    )
    with pytest.raises(InputError, match="no Axolotl here"):
        evolve.evolve(arguments, manifests.Meter())
    assert asked == [expected]


def test_launchers_are_found(tmp_path: Path) -> None:
    path = evolution.environment(tmp_path / "cost.json")["PATH"]
    assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_costs_of_all_processes_are_combined(tmp_path: Path) -> None:
    cost_file = tmp_path / "cost.json"
    assert evolution.read_cost(cost_file) == {}
    for rank, peaks in enumerate([[70, 0, 5], [0, 90, 0], [0, 0, 80]]):
        cost = {"device": "H200", "devices": 3, "peak_device_bytes": peaks}
        evolution.write_cost(cost_file, rank, cost)
    expected = {"device": "H200", "devices": 3, "peak_device_bytes": [70, 90, 80]}
    assert evolution.read_cost(cost_file) == expected


def run_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Run Python code instead of Axolotl."""
    words = [sys.executable, "-c", code]
    monkeypatch.setattr(evolution, "command", lambda *_: words)
    evolution.run("train", tmp_path / "axolotl.yaml", cost_file=tmp_path / "cost.json")


def test_the_output_of_axolotl_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cost.3.json").write_text("of an earlier attempt")
    code = "import sys; print('out'); print('half a line\\r', end='', file=sys.stderr)"
    run_instead(monkeypatch, tmp_path, code)
    assert sorted(capfd.readouterr().out) == sorted("out\nhalf a line\r")
    assert evolution.read_cost(tmp_path / "cost.json") == {}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", r"axolotl\.yaml: see its output above$"),
        (
            "raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB.')",
            r"axolotl\.yaml: out of device memory \(Tried to allocate 20\.00 MiB\); "
            r"try a smaller micro_batch_size .*gradient_accumulation_steps",
        ),
        ("raise MemoryError", r"axolotl\.yaml: out of host memory; raise mem_mb"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"was killed \(signal 9\) on .*axolotl\.yaml, most likely out of host memory",
        ),
    ],
)
def test_a_failure_of_axolotl_names_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_instead(monkeypatch, tmp_path, code)


def test_an_orphan_of_axolotl_does_not_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = """
import os, subprocess
print(subprocess.Popen(["sleep", "300"]).pid, flush=True)
os._exit(3)
"""
    with pytest.raises(InputError, match="see its output above"):
        run_instead(monkeypatch, tmp_path, code)
    # It is there still, and so is its end of the pipe.
    os.kill(int(capfd.readouterr().out), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_result_is_a_full_checkpoint(tmp_path: Path, kind: str) -> None:
    model = tiny.save_model(tmp_path / "model")
    if kind == "lora":
        trained = tiny.save_adapter(tmp_path / "trained", model)
    else:
        trained = tiny.save_model(tmp_path / "trained", seed=9)
    (trained / "trainer_state.json").write_text("{}")
    directory = tmp_path / "evolved"
    directory.mkdir()
    assert evolution.collect(model, trained, directory) == kind
    checkpoints.check_directory(directory, "evolved")
    assert Checkpoint(directory).shapes == Checkpoint(model).shapes
    assert Checkpoint(directory).tokenizer_hash == Checkpoint(model).tokenizer_hash
    assert not (directory / "trainer_state.json").exists()
    assert movement.movement(model, directory)["relative"] > 0.01


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_training_that_moved_no_weight_is_an_error(tmp_path: Path, kind: str) -> None:
    model = tiny.save_model(tmp_path / "model")
    if kind == "lora":
        # PEFT's own initialisation: B is zero.
        base = AutoModelForCausalLM.from_pretrained(model)
        get_peft_model(base, LoraConfig(target_modules="all-linear")).save_pretrained(
            tmp_path / "trained"
        )
        trained = tmp_path / "trained"
    else:
        trained = tiny.save_model(tmp_path / "trained", max_shard_size="10KB")
    directory = tmp_path / "evolved"
    directory.mkdir()
    with pytest.raises(InputError, match=r"moved no weight of .*/model: raise learning_rate in"):
        evolution.collect(model, trained, directory)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_result_that_is_not_finite_is_an_error(tmp_path: Path, kind: str) -> None:
    model = tiny.save_model(tmp_path / "model")
    if kind == "lora":
        trained = tiny.save_adapter(tmp_path / "trained", model)
    else:
        trained = tiny.save_model(tmp_path / "trained", max_shard_size="10KB")
    tiny.spoil(trained, math.inf, weight="")
    directory = tmp_path / "evolved"
    directory.mkdir()
    message = r"^1 of \d+ .* /.*/trained are not finite .*diverged: lower learning_rate in the rec"
    with pytest.raises(InputError, match=message.replace(" /", " .*/")):
        evolution.collect(model, trained, directory)
    assert list(directory.iterdir()) == []


def test_a_diverged_training_of_axolotl_is_named(axolotl: Path, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    recipe = tmp_path / "axolotl.yaml"
    recipe.write_text(f"base_model: {model}\n")
    message = "training diverged: the loss is nan at step 2 of 9"
    record = tmp_path / evolution.DIVERGED
    axolotl.write_text(f'#!/bin/sh\necho \'{{"message": "{message}"}}\' > {record}\nexit 1\n')
    with pytest.raises(InputError, match=rf"^Axolotl failed on .*\.yaml: {message}$"):
        evolution.run("train", recipe, cost_file=tmp_path / "cost.json")
    tiny.spoil(model)
    with pytest.raises(InputError, match=r"axolotl\.yaml: 1 of 21 weights of .*/model are not fin"):
        evolution.run("train", recipe, cost_file=tmp_path / "cost.json")
    # Another failure is not blamed on the record of this one.
    axolotl.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(InputError, match="see its output above"):
        evolution.run("train", recipe, cost_file=tmp_path / "cost.json")


def test_movement_against_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.save_model(tmp_path / "base", max_shard_size="10KB")
    version = tiny.save_model(tmp_path / "version", seed=3)
    # A piece that no weight's size is a multiple of.
    monkeypatch.setattr(movement, "PIECE", 7)
    result = movement.movement(base, version)
    one, other = dict(Checkpoint(base).tensors()), dict(Checkpoint(version).tensors())
    before = torch.cat([one[name].double().flatten() for name in one])
    after = torch.cat([other[name].double().flatten() for name in one])
    assert result["parameters"] == before.numel()
    assert result["base_norm"] == pytest.approx(before.norm().item())
    assert result["relative"] == pytest.approx(((after - before).norm() / before.norm()).item())
    assert movement.movement(base, base)["relative"] == 0


@pytest.mark.parametrize("spoiled", ["base", "version"])
def test_movement_of_a_weight_that_is_not_finite_is_an_error(tmp_path: Path, spoiled: str) -> None:
    base = tiny.save_model(tmp_path / "base")
    version = tiny.save_model(tmp_path / "version", seed=3)
    name = tiny.spoil(tmp_path / spoiled)
    with pytest.raises(InputError, match=rf"/{spoiled}: weight {name} is not finite"):
        movement.movement(base, version)


def test_movement_needs_equal_shapes(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    wider = tiny.save_model(tmp_path / "wider", intermediate_size=48)
    with pytest.raises(InputError, match=r"mlp.* with shape \[.*48.*\], expected \[.*32.*\] as in"):
        movement.movement(base, wider)


def test_checkpoints_are_saved_unless_the_recipe_sets_an_interval() -> None:
    final = rendered({})
    assert (final["save_steps"], final["save_total_limit"]) == (resuming.SAVE_STEPS, resuming.KEPT)
    for own in ({"save_steps": 7}, {"saves_per_epoch": 2}, {"save_strategy": "no"}):
        final = rendered(own)
        assert {key: final[key] for key in evolution.INTERVALS if key in final} == {
            **own,
            "save_total_limit": resuming.KEPT,
        }
    assert rendered({"save_strategy": None}, {"save_total_limit": 5})["save_total_limit"] == 5


def test_the_checkpoint_interval_does_not_change_the_key() -> None:
    recipe = {"learning_rate": 1, "save_steps": 7, "save_total_limit": 1}
    assert evolution.decisive(recipe) == evolution.decisive({"learning_rate": 1})
    assert evolution.decisive(recipe) != evolution.decisive({"learning_rate": 2})


@pytest.fixture
def axolotl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty program at the path of Axolotl."""
    program = tmp_path / "bin" / "axolotl"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    return program


STOPPABLE = """#!/bin/sh
trap 'touch stopped; exit 0' TERM
cd "$(dirname "$2")"
touch running
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_axolotl_and_fails_the_job(
    axolotl: Path, tmp_path: Path, number: signal.Signals
) -> None:
    axolotl.write_text(STOPPABLE)

    def stop() -> None:
        wait_for((tmp_path / "running").exists, 30)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        evolution.run("train", tmp_path / "axolotl.yaml", cost_file=tmp_path / "cost.json")
    assert ended.value.code == 128 + number
    assert (tmp_path / "stopped").exists()
    assert signal.getsignal(number) == before


def test_a_full_disk_is_named_as_the_cause(
    axolotl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axolotl.write_text("#!/bin/sh\nexit 3\n")
    recipe = tmp_path / "axolotl.yaml"
    with pytest.raises(InputError, match=r"Axolotl failed on .*axolotl\.yaml: see its output"):
        evolution.run("train", recipe, cost_file=tmp_path / "cost.json")
    monkeypatch.setattr(evolution.file_systems, "free_bytes", lambda path: 4096)
    with pytest.raises(InputError, match=r"\.yaml: the disk is full: 4,096 bytes are free"):
        evolution.run("train", recipe, cost_file=tmp_path / "cost.json")
