"""A setting's default is stated once, in the schema; programs and the library follow it."""

import argparse
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from portllm import command_line
from portllm.scoring import cache
from portllm.study import schema, stage_settings, validation, yaml_files

SCHEMA = yaml_files.read_yaml(PROJECT / "config" / "schema.yaml", what="schema")
TOP = SCHEMA["properties"]
TASK = TOP["tasks"]["additionalProperties"]["properties"]
EVOLUTION = TOP["evolutions"]["additionalProperties"]["properties"]
FROM_SCRATCH = SCHEMA["$defs"]["source"]["properties"]["from_scratch"]["properties"]
SEED = {"seed": {"default": TOP["study"]["properties"]["seeds"]["default"][0]}}
UNSAFE = {"allow_unsafe_code": TASK["allow_unsafe_code"]}


def of(section: str, *names: str) -> dict[str, Any]:
    return {name: TOP[section]["properties"][name] for name in names}


SCORING = {
    **{name: TASK[name] for name in ("few_shot", "limit")},
    **UNSAFE,
    **TOP["scoring"]["properties"],
}
PATCH = TOP["patch"]["properties"]
# Each program, the options that it cannot do without, and the settings that it takes.
PROGRAMS = {
    "train_patch": ("--model m --task t --work w --output o", {**PATCH, **SEED}),
    "pretrain": (
        "--corpus c --output o --steps 7 --config {}",
        {name: part for name, part in FROM_SCRATCH.items() if "default" in part},
    ),
    "evolve": (
        "--model m --corpus c --recipe r --work w --output o",
        {name: EVOLUTION[name] for name in ("overrides", "seed")},
    ),
    "score": ("--version v --task t --lm-eval l --results r --samples s", SCORING),
    "measure_loss_slice": (
        "--version v --carried c --native n --task t --lm-eval l --output o",
        {
            **UNSAFE,
            **TOP["loss_slices"]["properties"],
            **of("scoring", "batch_size", "dtype"),
            **of("patch", "max_length"),
        },
    ),
    "make_task_data": (
        "--lm-eval l --output o",
        {**UNSAFE, "training_limit": TASK["training_limit"], "hub_mirror": TOP["hub_mirror"]},
    ),
    "make_corpus": ("--definition {} --output o", {"hub_mirror": TOP["hub_mirror"]}),
}


def parse(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
    return importlib.import_module(program).parse_arguments()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_the_schema_s_settings_defaults_and_descriptions(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed, expected = PROGRAMS[program]
    arguments = vars(parse(program, needed.split(), monkeypatch))
    assert {name: arguments[name] for name in expected} == {
        name: part["default"] for name, part in expected.items()
    }
    with pytest.raises(SystemExit):
        parse(program, ["--help"], monkeypatch)
    shown = "".join(capsys.readouterr().out.split())
    for name, part in expected.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert "".join(part.get("description", "").split()) in shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_takes_the_types_of_the_schema(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a rule passes on is what the program reads.
    needed, expected = PROGRAMS[program]
    other = {"integer": 9, "number": 0.5, "string": "x", "object": {"a": 1}, "boolean": True}
    values = {}
    for name, part in expected.items():
        kinds = part.get("type", "integer")
        kind = kinds if isinstance(kinds, str) else kinds[0]
        values[name] = part["enum"][-1] if "enum" in part else other[kind]
        if "anyOf" in part:
            values[name] = ["q_proj", "v_proj"]
    words = [*needed.split(), *shlex.split(command_line.options(values))]
    arguments = vars(parse(program, words, monkeypatch))
    assert {name: arguments[name] for name in values} == values


def test_the_library_has_the_schema_s_defaults() -> None:
    from portllm.statistics import estimates
    from portllm.training.patch_training import LoraSettings

    patch = {name: part["default"] for name, part in {**PATCH, **SEED}.items()}
    assert vars(LoraSettings()) == patch
    assert vars(cache.ScoringSettings()) == {name: p["default"] for name, p in SCORING.items()}
    assert cache.PACKAGES.keys() == set(TOP["scoring"]["properties"]["backend"]["enum"])
    stated = {name: part["default"] for name, part in TOP["statistics"]["properties"].items()}
    assert (*(stated["level"], stated["resamples"], stated["seed"]),) == (
        estimates.LEVEL,
        estimates.RESAMPLES,
        estimates.SEED,
    )
    assert {field.name for field in fields(LoraSettings)} == patch.keys()


def test_a_default_is_changed_in_one_place(tmp_path: Path) -> None:
    for folder in ("config", "workflow_scripts"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    schema = tmp_path / "config" / "schema.yaml"
    before = "rank: {description: LoRA rank r., type: integer, minimum: 1, default: 8}"
    assert before in schema.read_text()
    schema.write_text(schema.read_text().replace(before, before.replace("8", "77")))
    program = tmp_path / "workflow_scripts" / "train_patch.py"
    shown = subprocess.run(
        [sys.executable, program, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "LoRA rank r. (default: 77)" in shown
    code = "from portllm.training.patch_training import LoraSettings; print(LoraSettings().rank)"
    ranks = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "workflow_scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert ranks.stdout.strip() == "77"


def test_null_reaches_a_program_whose_default_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    study: dict[str, Any] = {
        "models": {"m": {"base": {"path": "p"}}},
        "tasks": {"t": {}},
        "loss_slices": {"items": None},
    }
    validation.check_schema(study, SCHEMA)
    options = command_line.options(stage_settings.loss_slice_settings(study, "t"))
    needed, _ = PROGRAMS["measure_loss_slice"]
    words = [word for word in needed.split() if word not in ("--lm-eval", "l")]
    assert parse("measure_loss_slice", words + options.split(), monkeypatch).items is None


def test_a_task_s_patch_takes_every_setting_and_keeps_the_study_s_for_the_rest() -> None:
    changed = {"rank": 2, "precision": "float32", "target_modules": ["q_proj"]}
    study: dict[str, Any] = {
        "models": {"m": {"base": {"path": "p"}}},
        "tasks": {"t": {"patch": dict(changed)}},
        "patch": {"alpha": 3},
    }
    validation.check_schema(study, SCHEMA)
    assert study["tasks"]["t"]["patch"] == changed
    expected = {name: part["default"] for name, part in PATCH.items()}
    assert stage_settings.patch_settings(study, "t") == {**expected, "alpha": 3, **changed}


def test_settings_are_found_behind_references() -> None:
    result = schema.properties("models.*.base.from_scratch")
    assert result.keys() == FROM_SCRATCH.keys()
    assert json.dumps(schema.defaults("patch")) == json.dumps(
        {name: part["default"] for name, part in PATCH.items()}
    )
