"""The stage programs, run by hand."""

from pathlib import Path

import pytest
import tiny
from conftest import PROJECT, run_program

PROGRAMS = sorted(path.name for path in (PROJECT / "workflow_scripts").glob("*.py"))
HEAVY = (
    *("torch", "transformers", "peft", "accelerate", "lm_eval", "datasets", "axolotl", "vllm"),
    *("numpy", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "statsmodels", "jsonschema"),
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_explains_and_loads_nothing_heavy(program: str) -> None:
    done = run_program(program, "--help", python=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    lines = (PROJECT / "workflow_scripts" / program).read_text().splitlines()
    assert lines[0].strip('"') in " ".join(done.stdout.split())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & set(HEAVY)


def test_an_adapter_that_does_not_fit_is_reported_in_one_line(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    wider = tiny.save_model(tmp_path / "wider", intermediate_size=48)
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    arguments = (
        "--patch",
        str(adapter),
        "--version",
        str(wider),
        "--adapter",
        str(tmp_path / "port"),
    )
    done = run_program("transplant.py", *arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(f"error: {adapter} does not fit {wider}: it changes ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "port").exists()


def test_transplant_by_hand(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    both = ("--patch", str(adapter), "--version", str(model))
    checked = run_program("transplant.py", *both, "--check")
    assert checked.returncode == 0
    assert "fits" in checked.stderr
    written = ("--adapter", str(tmp_path / "port"), "--merged", str(tmp_path / "merged"))
    options = ("--method", "scaled", "--parameter", "scale=0.5")
    done = run_program("transplant.py", *both, *options, *written)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "port" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_porting_without_merging_needs_no_torch(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    arguments = ("--patch", adapter, "--version", model, "--method", "random_direction")
    written = ("--adapter", tmp_path / "port")
    done = run_program(
        "transplant.py", *map(str, (*arguments, *written)), python=("-X", "importtime")
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & (set(HEAVY) - {"numpy"})


def test_an_unknown_parameter_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model)
    done = run_program(
        *("transplant.py", "--patch", str(adapter), "--version", str(model)),
        *("--method", "scaled", "--parameter", "scal=2", "--adapter", str(tmp_path / "port")),
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: scaled has no parameter 'scal'; nearest: scale"
