"""Whatever is damaged below the results is named, and made again by the same command."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.storm import Storm
from conftest import MINUTE, Checkout, copy_state, use_stand_ins

from portllm.storage import files, manifests, results_manifest

CONFIG = ("--configfile", MINUTE)
Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


FINAL: dict[str, Damage] = {
    "scores.csv": flip,
    "analysis/tiny/second/movement.json": flip,
    "tables/main.md": flip,
    "tables/main.csv": Path.unlink,
    "report.html": empty,
    "scores/tiny/second/demo_arithmetic.json": flip,
    "scores/tiny/second/demo_yes_no.json": Path.unlink,
    "scores/tiny/first/demo_yes_no.samples.jsonl": flip,
    "ports/tiny/base/first/demo_yes_no/direct/seed1234/adapter_config.json": cut,
    "ports/tiny/base/first/demo_arithmetic/direct/seed1234/manifest.json": Path.unlink,
    "ports/tiny/base/second/demo_yes_no/direct/seed1234": shutil.rmtree,
    "patches/tiny/base/demo_yes_no/seed1234/adapter_model.safetensors": flip,
}


def contents(results: Path) -> dict[str, bytes]:
    """Read what does not depend on when it was made."""
    kept = [*results.rglob("*.safetensors"), *results.glob("scores.csv")]
    kept += results.glob("tables/main.*")
    return {str(path.relative_to(results)): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_damage_to_a_finished_study(minute_study: Checkout, tmp_path: Path) -> None:
    study = copy_state(minute_study, tmp_path / "copy")
    results = study.directory / "results"
    before = contents(results)
    assert "is damaged" not in study.complete(*CONFIG)
    for name, damage in FINAL.items():
        damage(results / name)
    seen = study.run("--dry-run", *CONFIG).stdout
    output = study.complete(*CONFIG)
    for text in (seen, output):
        assert "Traceback" not in text
        for name in FINAL:
            assert is_named(text, name), name
    assert contents(results) == before
    again = study.complete(*CONFIG)
    assert "is damaged" not in again
    assert "Nothing to be done" in again


def is_named(text: str, name: str) -> bool:
    """Whether a run names a damaged result, or the directory that it is part of."""
    places = (f"results/{name} is ", f"results/{name.rpartition('/')[0]} is ")
    return any(f"{place}{what}" in text for place in places for what in ("damaged", "missing"))


MODEL = "results/models/tiny/base"
MODEL_FILES = ("config.json", "manifest.json", "model.safetensors", "tokenizer.json")
SCORES = "results/scores/tiny/base/demo_yes_no.json"


def write_model(directory: Path) -> None:
    """Replace the output of a stand-in by a directory as a program writes it."""
    (directory / "made_by").unlink()
    (directory / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 400}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(manifests.SMALL))
    cost = manifests.Meter().read()
    manifests.write_for_directory(directory, stage="x", parameters={}, inputs={}, cost=cost)


@pytest.fixture
def finished(checkout: Checkout) -> Checkout:
    """A study of stand-ins whose base model has the files of a real one."""
    use_stand_ins(checkout)
    checkout.complete(SCORES, *CONFIG)
    write_model(checkout.directory / MODEL)
    # As a study of an earlier release: it has no record of its results.
    (checkout.directory / "results" / results_manifest.NAME).unlink()
    assert "is damaged" not in checkout.complete(SCORES, *CONFIG)
    return checkout


def damaged_at_random(path: Path, choice: int) -> None:
    (flip, cut, empty, Path.unlink, lambda file: file.write_bytes(b"\xff{"))[choice](path)


def test_a_damaged_model_is_made_again(finished: Checkout, storm: Storm, tmp_path: Path) -> None:
    for number, trial in enumerate(storm.trials("damage", 4)):
        with trial:
            study = copy_state(finished, tmp_path / f"copy{number}")
            # The first trials cover each file.
            name = MODEL_FILES[number % len(MODEL_FILES)]
            choice = 1 if number == 0 else trial.random.randrange(5)
            trial.describe(f"{name}, way {choice}")
            damaged_at_random(study.directory / MODEL / name, choice)
            for arguments in (("--dry-run",), ()):
                output = trial.output(study.complete(*arguments, SCORES, *CONFIG))
                assert f"{MODEL} is damaged (" in output
            assert (study.directory / MODEL / "made_by").exists()
            assert "is damaged" not in study.complete(SCORES, *CONFIG)


def test_missing_results_are_made_again(finished: Checkout) -> None:
    shutil.rmtree(finished.directory / MODEL)
    (finished.directory / SCORES).unlink()
    assert finished.counts(SCORES, *CONFIG)["pretrain"] == 1
    output = finished.complete(SCORES, *CONFIG)
    for name in (MODEL, SCORES):
        assert f"{name} is missing. It will be made again." in output
    assert "Nothing to be done" in finished.complete(SCORES, *CONFIG)


def test_a_touched_file_is_hashed_and_kept(finished: Checkout) -> None:
    weights = finished.directory / MODEL / "model.safetensors"
    weights.touch()
    assert "is damaged" not in finished.complete(SCORES, *CONFIG)
    recorded = results_manifest.ResultsManifest(finished.directory / "results")
    part = recorded.recorded(finished.directory / MODEL)[weights.name]
    assert part.stamp == results_manifest.stamp(weights)


def test_a_damaged_record_costs_no_result(finished: Checkout) -> None:
    record = finished.directory / "results" / results_manifest.NAME
    flip(record)
    os.truncate(record, record.stat().st_size - 5)
    output = finished.complete(SCORES, *CONFIG)
    assert f"results/{results_manifest.NAME} is damaged. It will be written again." in output
    assert "Nothing to be done" in output
    assert "is damaged" not in finished.complete(SCORES, *CONFIG)
    for line in record.read_text().splitlines():
        assert files.parse_json(line, "line")["files"]
