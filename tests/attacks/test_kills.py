"""Programs that are killed at random leave a complete result or none, and the next run makes it."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import tiny
from attacks.forked import COMMAND, SCRIPTS, TRAINING, Forker, forker
from attacks.storm import Storm

from portllm.storage import files, manifests

pytestmark = pytest.mark.slow

PORT = ("port", "--output", "out")
MERGE = ("merge", "--output", "out")
STEPS = 24


@pytest.fixture(scope="module")
def programs() -> Iterator[Forker]:
    with forker(*TRAINING, "portllm.transplant.merging") as started:
        yield started


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `base`, two patches and a `task`. Copy, do not change."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny.save_model(directory / "base", max_shard_size="10KB")
    tiny.save_adapter(directory / "patch", base)
    tiny.save_adapter(directory / "older", base, **tiny.UNLIKE)
    (directory / "task").mkdir()
    rows = ({"prompt": f"Question {number}:", "completion": " yes"} for number in range(40))
    files.write_json_lines(directory / "task" / "train.jsonl", rows)
    return directory


def content(directory: Path) -> dict[str, str] | None:
    """The hash of each file of a result; None if it is absent. Manifests record times."""
    return (
        files.hash_files(directory, exclude=manifests.NOT_CONTENT) if directory.exists() else None
    )


def killed(
    programs: Forker, place: Path, words: tuple[str, ...], random: Random, seconds: float
) -> tuple[int, str]:
    """Run a program and signal it at a random moment of `seconds`; return status and output."""
    run = programs.start(place, *words)
    time.sleep(random.uniform(0, seconds))
    run.kill(random.choice([signal.SIGKILL, signal.SIGTERM]))
    return run.wait()


def assert_only(place: Path, expected: set[str]) -> None:
    """Check that nothing was left behind, in the directory or among the temporary files."""
    assert {path.name for path in place.iterdir()} == {*expected, "output.log", "tmp"}
    assert list((place / "tmp").iterdir()) == []


def command(words: tuple[str, ...], patch: str) -> tuple[str, ...]:
    return (COMMAND, words[0], "--patch", patch, "--base", "base", *words[1:])


def timed(programs: Forker, place: Path, words: tuple[str, ...]) -> float:
    """Run a program, which must succeed; return its seconds."""
    started = time.monotonic()
    status, output = programs.run(place, *words)
    assert status == 0, output
    return time.monotonic() - started


@pytest.mark.parametrize("words", [PORT, MERGE], ids=["port", "merge"])
def test_a_killed_transplant_is_complete_or_absent(
    programs: Forker, models: Path, tmp_path: Path, storm: Storm, words: tuple[str, ...]
) -> None:
    place = tmp_path / "place"
    shutil.copytree(models, place)
    inputs = {path.name for path in models.iterdir()}
    whole, seconds = {None: None}, 0.0
    for patch in ("older", "patch"):
        seconds = timed(programs, place, command(words, patch))
        whole[patch] = content(place / "out")
    before = {name: content(place / name) for name in inputs}
    for trial in storm.trials("kill", 15):
        with trial:
            shutil.rmtree(place / "out", ignore_errors=True)
            older = trial.random.choice([None, "older"])
            if older:
                timed(programs, place, command(words, older))
            trial.describe(f"over {older or 'nothing'}")
            called = command(words, "patch")
            status, output = killed(programs, place, called, trial.random, seconds)
            trial.output(output)
            left = content(place / "out")
            # An output of an earlier run is moved away just before the new one takes its place.
            allowed = [whole["patch"]] if status == 0 else [whole["patch"], whole[older], None]
            assert left in allowed, f"status {status}, found {left}"
            timed(programs, place, called)
            assert content(place / "out") == whole["patch"]
            assert_only(place, {*inputs, "out"})
            assert {name: content(place / name) for name in inputs} == before


def test_a_killed_training_ends_with_the_same_patch(
    programs: Forker, models: Path, tmp_path: Path, storm: Storm
) -> None:
    options = {"max-steps": STEPS, "checkpoint-steps": 4, "batch-size": 4, "max-length": 32}
    words = (
        *(str(SCRIPTS / "train_patch.py"), "--model", "base", "--task", "task"),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *("--work", "work", "--output", "out"),
    )
    place = tmp_path / "place"
    shutil.copytree(models, place)
    inputs = {path.name for path in models.iterdir()}
    seconds = timed(programs, place, words)
    whole = content(place / "out")
    resumed = 0
    for trial in storm.trials("kill", 5):
        with trial:
            shutil.rmtree(place / "out")
            for _ in range(trial.random.randint(1, 3)):
                status, output = killed(programs, place, words, trial.random, seconds)
                trial.output(output)
                assert content(place / "out") in ([whole] if status == 0 else [whole, None])
            timed(programs, place, words)
            assert content(place / "out") == whole
            training = files.read_json(place / "out" / manifests.NAME)["training"]
            resumed += training["resumed_from_step"] > 0
            assert training["steps"] == STEPS
            assert list((place / "work").iterdir()) == []
            assert_only(place, {*inputs, "out", "work"})
    assert resumed, "no kill came after a checkpoint"
