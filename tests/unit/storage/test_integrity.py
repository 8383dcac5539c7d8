"""Damaged results of every kind are found."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_program

from portllm.errors import InputError
from portllm.storage import files, integrity, manifests


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One intact artefact of each kind, and work in progress."""
    results = tmp_path / "results"
    cost = manifests.Meter().read()
    provenance = {"stage": "x", "parameters": {}, "inputs": {}, "cost": cost}
    with files.whole_directory(results / "patches/m/base/t/seed1") as patch:
        (patch / "adapter_model.safetensors").write_bytes(b"w" * manifests.SMALL)
        (patch / "adapter_config.json").write_text("{}")
        manifests.write_for_directory(patch, **provenance)
    rows = results / "corpora/c.jsonl"
    files.write_json_lines(rows, [{"text": "a"}, {"text": "b"}])
    manifests.write_for_file(rows, **provenance)
    samples = results / "scores/m/base/t.samples.jsonl"
    files.write_json_lines(samples, [{"cell": "k"}])
    sizes = {samples.name: samples.stat().st_size}
    files.write_json(results / "scores/m/base/t.json", {"cells": [], "sizes": sizes})
    (results / "scores.csv").write_text("model,task\nm,t\n")
    (results / "tables").mkdir()
    (results / "tables/main.md").write_text("| a |\n")
    (results / "figures").mkdir()
    (results / "figures/f.png").write_bytes(b"\x89PNG...IEND\xaeB`\x82")
    for half in (
        "checkpoints/patch/k/checkpoint-1/trainer_state.json",
        "models/.x.partial-1/m.json",
    ):
        (results / half).parent.mkdir(parents=True)
        (results / half).write_text("{")
    return results


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


CASES: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "weights truncated": (
        "patches/m/base/t/seed1/adapter_model.safetensors",
        cut,
        "patches/m/base/t/seed1",
        "adapter_model.safetensors has 1,048,573 bytes, expected 1,048,576",
    ),
    "file missing": (
        "patches/m/base/t/seed1/adapter_config.json",
        Path.unlink,
        "patches/m/base/t/seed1",
        "adapter_config.json is missing",
    ),
    "manifest truncated": (
        "patches/m/base/t/seed1/manifest.json",
        cut,
        "patches/m/base/t/seed1",
        "invalid JSON",
    ),
    "rows truncated": ("corpora/c.jsonl", cut, "corpora/c.jsonl", "truncated"),
    "rows truncated after a line": (
        "corpora/c.jsonl",
        lambda path: path.write_text('{"text": "a"}\n'),
        "corpora/c.manifest.json",
        "c.jsonl has 14 bytes, expected 28",
    ),
    "result truncated": ("scores/m/base/t.json", cut, "scores/m/base/t.json", "invalid JSON"),
    "result emptied": (
        "scores/m/base/t.json",
        lambda path: path.write_text(""),
        "scores/m/base/t.json",
        "invalid JSON",
    ),
    "samples missing": (
        "scores/m/base/t.samples.jsonl",
        Path.unlink,
        "scores/m/base/t.json",
        "t.samples.jsonl is missing",
    ),
    "scores truncated": ("scores.csv", cut, "scores.csv", "truncated"),
    "table emptied": (
        "tables/main.md",
        lambda path: path.write_text(""),
        "tables/main.md",
        "truncated",
    ),
    "figure truncated": ("figures/f.png", cut, "figures/f.png", "truncated"),
    "configuration changed": (
        "patches/m/base/t/seed1/adapter_config.json",
        flip,
        "patches/m/base/t/seed1",
        "the content of adapter_config.json does not match its manifest",
    ),
    "manifest of wrong types": (
        "patches/m/base/t/seed1/manifest.json",
        lambda path: path.write_text('{"sizes": [3]}'),
        "patches/m/base/t/seed1",
        "expected an object",
    ),
    "table a dead link": (
        "tables/main.md",
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "tables/main.md",
        "no such file",
    ),
}


def test_intact_results_pass(results: Path) -> None:
    assert list(integrity.damaged(results)) == []
    assert list(integrity.damaged(results, contents=True)) == []
    assert len(list(integrity.artefacts(results))) == 8


@pytest.mark.parametrize("case", CASES)
def test_damage_is_described(results: Path, case: str) -> None:
    file, damage, artefact, problem = CASES[case]
    damage(results / file)
    result = {str(path.relative_to(results)): what for path, what in integrity.damaged(results)}
    assert problem in result[artefact]
    assert set(result) <= {artefact, "corpora/c.manifest.json"}


def test_changed_bytes_with_the_old_time_are_found_only_with_contents(results: Path) -> None:
    weights = results / "patches/m/base/t/seed1/adapter_model.safetensors"
    time = weights.stat().st_mtime_ns
    flip(weights)
    assert len(list(integrity.damaged(results))) == 1
    os.utime(weights, ns=(time, time))
    assert list(integrity.damaged(results)) == []
    quick = run_program("check_results.py", str(results))
    assert (quick.returncode, quick.stdout) == (0, "")
    thorough = run_program("check_results.py", str(results), "--contents")
    assert thorough.returncode == 1
    expected = f"{weights.parent}: the content of {weights.name} does not match its manifest\n"
    assert thorough.stdout == expected


def test_a_damaged_input_is_an_error(results: Path) -> None:
    patch = results / "patches/m/base/t/seed1"
    before = manifests.content_hash(patch)
    cut(patch / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"seed1 is damaged: .*; rerun Snakemake"):
        manifests.content_hash(patch)
    corpus = results / "corpora/c.jsonl"
    manifests.content_hash(corpus)
    cut(corpus)
    with pytest.raises(InputError, match=r"c\.jsonl is damaged: .*25 bytes, expected 28"):
        manifests.content_hash(corpus)
    assert before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_what_a_program_reads_is_what_the_manifest_records(results: Path, name: str) -> None:
    patch = results / "patches/m/base/t/seed1"
    before = manifests.content_hash(patch)
    (patch / name).touch()
    assert manifests.content_hash(patch) == before
    flip(patch / name)
    with pytest.raises(InputError, match=f"seed1 is damaged: the content of {name}"):
        manifests.content_hash(patch)
