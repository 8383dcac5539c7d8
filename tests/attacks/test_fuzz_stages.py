"""Stages whose inputs are damaged at random: a complete output or one line, and nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import elsewhere
import pytest
import tiny
import yaml
from attacks import mutations
from attacks.forked import SCRIPTS, TRAINING, forker
from attacks.storm import Storm
from conftest import PROJECT

from portllm.storage import files

pytestmark = pytest.mark.slow


class _Tagged(yaml.SafeDumper):
    """Writes `!function module.name` as it was read."""


class _Function(str):
    """The name of a function of a task."""


_Tagged.add_representer(
    _Function, lambda dumper, name: dumper.represent_scalar("!function", str(name))
)


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name`."""


_Loader.add_constructor("!function", lambda loader, node: _Function(node.value))


def damage_yaml(path: Path, draw: Random) -> str:
    """Damage a task's YAML by its structure."""
    value, done = mutations.mutated(yaml.load(path.read_text(), _Loader), draw)
    try:
        path.write_text(yaml.dump(value, Dumper=_Tagged))
    except RecursionError:
        path.write_text("[" * 800 + "]" * 800)
    return f"{path.name}: {done}"


def damage_line(path: Path, draw: Random) -> str:
    """Damage one line of a JSON-lines file by its structure."""
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    value, done = mutations.mutated(files.parse_json(lines[number], "line"), draw)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: line {number + 1}: {done}"


BY_STRUCTURE: dict[str, Callable[[Path, Random], str]] = {
    ".json": mutations.damage_json,
    ".jsonl": damage_line,
    ".yaml": damage_yaml,
}


def damaged(path: Path, draw: Random) -> str:
    """Damage a file in any way; return what was done."""
    if draw.random() < 0.3:
        return mutations.damage_bytes(path, draw)
    return BY_STRUCTURE[path.suffix](path, draw)


@dataclass(frozen=True)
class Stage:
    """A program with its arguments, what it reads and what it writes."""

    program: str
    modules: tuple[str, ...]
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: frozenset[str]
    trials: int


SETTINGS = {**elsewhere.STUDY, "files": ["**/*.json"], "seed": 1}
# Not tokenizer.json: with a token of number 2³¹, the tokenizers library takes 8 GB.
STAGES = {
    "training": Stage(
        "train_patch.py",
        TRAINING,
        ("--model", "base", "--task", "task", "--max-steps", "1", "--work", "w", "--output", "out"),
        ("task/train.jsonl", "base/config.json", "base/manifest.json"),
        frozenset({"out", "w"}),
        20,
    ),
    "task": Stage(
        "make_task_data.py",
        ("portllm.data.tasks",),
        (
            *("--lm-eval", "demo_yes_no", "--include", "demo", "--training-limit", "4"),
            *("--allow-unsafe-code", "--output", "out"),
        ),
        ("demo/demo_yes_no.yaml",),
        frozenset({"out"}),
        20,
    ),
    "results of others": Stage(
        "import_scores.py",
        ("portllm.comparison.imported",),
        (
            *("--name", "paper", "--settings", json.dumps(SETTINGS)),
            *("--scores", "out.csv", "--files", "out.files.csv", "--notes", "out.notes.txt"),
        ),
        ("elsewhere/bare/v0/boolq/results_2026-06-01T10-00-00.5.json",),
        frozenset({"out.csv", "out.files.csv", "out.notes.txt"}),
        20,
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that the stages read. Copy, do not change."""
    directory = tmp_path_factory.mktemp("inputs")
    tiny.save_model(directory / "base")
    size = (directory / "base/config.json").stat().st_size
    manifest = {"content_hash": files.hash_value({}), "content": {}, "sizes": {"config.json": size}}
    files.write_json(directory / "base/manifest.json", manifest)
    (directory / "task").mkdir()
    rows = ({"prompt": f"Question {number}:", "completion": " yes"} for number in range(8))
    files.write_json_lines(directory / "task/train.jsonl", rows)
    shutil.copytree(PROJECT / "resources/demo", directory / "demo")
    elsewhere.save_all(directory / "elsewhere", updates=2)
    return directory


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_with_damaged_inputs(name: str, inputs: Path, tmp_path: Path, storm: Storm) -> None:
    stage, given = STAGES[name], {path.name for path in inputs.iterdir()}
    with forker(*stage.modules) as programs:
        for number, trial in enumerate(storm.trials("fuzz", stage.trials)):
            with trial:
                place = tmp_path / str(number)
                shutil.copytree(inputs, place)
                if number:  # The first is intact.
                    path = place / trial.random.choice(stage.inputs)
                    trial.describe(damaged(path, trial.random))
                status, output = programs.run(place, str(SCRIPTS / stage.program), *stage.arguments)
                trial.output(output)
                left = {path.name for path in place.iterdir()} - {*given, "output.log", "tmp"}
                assert left <= stage.outputs
                assert list((place / "tmp").iterdir()) == []
                if status == 0:
                    assert left
                else:
                    last = output.strip().splitlines()[-1]
                    assert last.startswith("error: "), output[-1000:]
                    assert "out" not in left
                    assert number, output
