"""Files that are damaged at random: a right result, or one line and nothing left behind."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from attacks import mutations
from attacks.storm import Storm
from conftest import PROJECT, Checkout
from safetensors import safe_open

from portllm.cli import main as command
from portllm.errors import InputError
from portllm.reporting import registry
from portllm.storage import files
from portllm.study import config as configuration
from portllm.study.yaml_files import read_yaml
from portllm.weights import module_patterns
from portllm.weights.checkpoints import INDEX

FILES = (
    "patch/adapter_config.json",
    "patch/adapter_model.safetensors",
    "patch/manifest.json",
    "base/config.json",
    "base/tokenizer.json",
    "base/manifest.json",
    f"base/{INDEX}",
    "base/model-00001-of-00004.safetensors",
    "dense/transplant.json",
    "dense/patches/0/adapter_config.json",
)
COMMANDS = (
    ("check",),
    ("port", "--output", "out"),
    ("merge", "--output", "out"),
    ("merge", "--dry-run", "--output", "out"),
    ("unmerge", "--output", "out"),
)
STUDIES = ("config.yaml", "config/paper.yaml", "config/temporal.yaml", "config/real_small.yaml")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `base` in four shards, a `patch` and a `dense` port. Do not change."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny.save_model(directory / "base", max_shard_size="10KB")
    patch = tiny.save_adapter(directory / "patch", base)
    with contextlib.chdir(directory):
        assert portllm("port", "--method", "ties", "--output", "dense") == ""
    for artefact, name in ((base, "config.json"), (patch, "adapter_config.json")):
        size = (artefact / name).stat().st_size
        manifest = {"content_hash": "0", "content": {name: "0"}, "sizes": {name: size}}
        fingerprint = {"architecture": "MistralForCausalLM", "tokenizer": None, "weights": {}}
        files.write_json(artefact / "manifest.json", {**manifest, "fingerprint": fingerprint})
    return directory


@pytest.fixture
def place(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], contextlib.AbstractContextManager[Path]]:
    """Make fresh copies of the models in a new working directory, one after the other."""
    monkeypatch.setattr(module_patterns, "CPU_SECONDS", 0.5)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")

    @contextlib.contextmanager
    def fresh() -> Iterator[Path]:
        directory = tmp_path / "place"
        shutil.copytree(models, directory)
        try:
            with contextlib.chdir(directory), within(120):
                yield directory
        finally:
            shutil.rmtree(directory)

    return fresh


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where a block does not end."""

    def stop(number: int, frame: Any) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def portllm(*arguments: str, patch: str = "patch") -> str:
    """Run the `portllm` command in this process; return its error, empty for none."""
    name, *options = arguments
    handler, words = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["portllm", name, "--patch", patch, "--base", "base", *options]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            command.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, str) else printed.getvalue().strip()
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.argv = words
    return ""


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file in any way; return what was done."""
    if draw.random() < 0.3:
        return mutations.damage_bytes(path, draw)
    by_structure = {".json": mutations.damage_json, ".safetensors": mutations.damage_header}
    return by_structure[path.suffix](path, draw)


def check_error(error: str) -> None:
    assert error.startswith("error: "), error
    assert error.isprintable(), error
    assert len(error) < 5000


def check_readable(checkpoint: Path) -> None:
    """Check that the safetensors library reads every weight that the index names."""
    index = files.read_object(checkpoint / INDEX)["weight_map"]
    for name, shard in index.items():
        with safe_open(checkpoint / shard, framework="numpy") as file:
            assert name in file.keys()  # noqa: SIM118


def test_damaged_models_and_adapters(storm: Storm, place: Any) -> None:
    for trial in storm.trials("fuzz", 250):
        with trial, place() as directory:
            path, words = trial.random.choice(FILES), trial.random.choice(COMMANDS)
            trial.describe(f"{words[0]}, {damage(Path(path), trial.random)}")
            error = trial.output(portllm(*words, patch="dense" if "dense" in path else "patch"))
            left = {entry.name for entry in directory.iterdir()} - {"base", "patch", "dense"}
            if error:
                check_error(error)
                assert not left
            else:
                assert left == ({"out"} if "out" in words and "--dry-run" not in words else set())
                if "merge" in words[0] and left:
                    check_readable(directory / "out")


def test_damaged_models_and_adapters_that_are_scored(storm: Storm, place: Any) -> None:
    from portllm.scoring import hf

    loaded = [name for name in FILES if not name.startswith("dense")]
    for trial in storm.trials("fuzz", 30):
        with trial, place():
            path = Path(trial.random.choice(loaded))
            trial.describe(damage(path, trial.random))
            try:
                model, _ = hf.load_version(Path("base"), "float32")
                with hf.patched(model, Path("patch")):
                    pass
            except InputError as error:
                check_error(f"error: {error}")


def test_damaged_studies(storm: Storm, tmp_path: Path) -> None:
    exhibits, file = registry.load(), tmp_path / "study.yaml"
    studies = {name: yaml.safe_load((PROJECT / name).read_text()) for name in STUDIES}
    for trial in storm.trials("fuzz", 30):
        with trial, within(120):
            name = trial.random.choice(STUDIES)
            study, done = mutations.mutated(studies[name], trial.random)
            trial.describe(f"{name}: {done}")
            file.write_text(json.dumps(study))  # which is YAML
            try:
                study = read_yaml(file, what=str(file))
                if isinstance(study, dict):
                    options = {"exhibits": exhibits, "files": [file]}
                    configuration.load(study, schema=PROJECT / "config/schema.yaml", **options)
                    configuration.recipes(study)
            except (InputError, OSError) as error:  # both are one line, see rules/common.smk
                check_error(f"error: {str(error).splitlines()[0]}")


def test_damaged_text(storm: Storm, tmp_path: Path) -> None:
    readers = {
        "config/temporal.yaml": lambda path: read_yaml(path, what=str(path)),
        "resources/models/mistral-7b-v0.1.json": files.read_json,
    }
    for trial in storm.trials("fuzz", 200):
        name = trial.random.choice(list(readers))
        path = tmp_path / Path(name).name
        with trial, within(60):
            path.write_bytes((PROJECT / name).read_bytes())
            trial.describe(mutations.damage_bytes(path, trial.random))
            with contextlib.suppress(InputError):
                readers[name](path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_damaged_files_at_the_command_line(storm: Storm, place: Any, checkout: Checkout) -> None:
    check = [sys.executable, "-m", "portllm", "check", "--patch", "patch", "--base", "base"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")}
    for trial in storm.trials("fuzz", 5):
        with trial, place():
            trial.describe(damage(Path(trial.random.choice(FILES[:5])), trial.random))
            done = subprocess.run(
                check, capture_output=True, text=True, env=environment, timeout=100, check=False
            )
            output = trial.output(done.stdout + done.stderr)
            if done.returncode:
                check_error(output.strip().splitlines()[-1])
        with trial, within(100):
            original = checkout.read("config.yaml")
            study, done_to_it = mutations.mutated(original, trial.random)
            trial.describe(f"config.yaml: {done_to_it}")
            (checkout.directory / "study.yaml").write_text(json.dumps(study))
            run = checkout.run("--dry-run", "--configfile", "study.yaml")
            trial.output(run.stdout)
            if run.returncode:
                assert "error: " in run.stdout, run.stdout[-3000:]
