"""Axolotl itself accepts the recipes of all studies, and its keys are those that we know."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from portllm.storage import files
from portllm.study import axolotl_recipes
from portllm.study import config as configuration
from portllm.study.yaml_files import read_yaml
from portllm.training import evolution, recipe_defaults
from portllm.training.recipe_defaults import Device

pytestmark = pytest.mark.slow

PYTHON = PROJECT / ".venvs" / "train" / "bin" / "python"
STUDIES = [PROJECT / "config.yaml", *sorted((PROJECT / "config").glob("*.yaml"))]
CAPABILITIES = [(8, 0), (9, 0)]
DEVICES = [1, 4]
SOFT_CAPPED = {"gemma2": {"attn_logit_softcapping": 50.0}}

# Axolotl takes ten seconds to import, so one process validates everything, as `axolotl train` does
# on a machine with the given GPUs.
VALIDATE = """
import json, os, sys
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault

for line in sys.stdin:
    case = json.loads(line)
    recipe = DictDefault(case["recipe"])
    os.environ["WORLD_SIZE"] = str(case["capabilities"]["n_gpu"])
    error = None
    try:
        prepare_plugins(recipe)
        validate_config(recipe, case["capabilities"], {"torch_version": case["torch"]})
    except Exception as problem:
        error = " ".join(str(problem).split())
    print("ANSWER", json.dumps([case["name"], error]))
"""


def python(*arguments: Any, lines: str = "", folder: Path) -> str:
    done = subprocess.run(
        [PYTHON, *arguments],
        env=evolution.environment(folder / "cost.json"),
        input=lines,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_list_of_keys_is_that_of_the_pinned_axolotl(tmp_path: Path) -> None:
    python(PROJECT / "envs" / "list_axolotl_keys.py", tmp_path / "keys.json", folder=tmp_path)
    listed = files.read_json(PROJECT / axolotl_recipes.KEYS)
    assert files.read_json(tmp_path / "keys.json") == listed, "run `make axolotl-keys`"


def model_configs(study: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration of each base model of a study, as far as the repository knows it."""
    known = [files.read_json(path) for path in (PROJECT / "resources" / "models").glob("*.json")]
    by_name = {model["hub"].lower(): model for model in known}
    found = []
    for model in study["models"].values():
        base = model.get("base", {})
        scratch = base.get("from_scratch", {}).get("config")
        config = scratch or by_name.get(str(base.get("hub")).lower(), {"model_type": "llama"})
        found.append(config | SOFT_CAPPED.get(config["model_type"], {}))
    return found


def cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All rendered recipes, each once for every model, capability and number of devices."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(recipe_defaults, "_check_compiler", lambda recipe: None)
    torch = next(
        line.partition("==")[2]
        for line in (PROJECT / axolotl_recipes.PINS).read_text().splitlines()
        if line.startswith("torch==")
    )
    found = {}
    for file in STUDIES:
        study = read_yaml(file, what=file.name)
        if not study.get("evolutions"):
            continue
        for definition in study["evolutions"].values():
            definition.setdefault("overrides", {})
        for index, config in enumerate(model_configs(study)):
            model = folder / file.stem / str(index)
            model.mkdir(parents=True, exist_ok=True)
            (model / "config.json").write_text(json.dumps(config))
            for name, recipe in configuration.recipes(study).items():
                for capability in CAPABILITIES:
                    final = evolution.render(
                        recipe_defaults.complete(recipe, config, Device(capability)),
                        model=model,
                        corpus=folder / "corpus.jsonl",
                        work=folder / "work",
                        prepared=folder / "prepared",
                        seed=1,
                    )
                    for devices in DEVICES:
                        capabilities = {
                            "bf16": True,
                            "fp8": capability >= (9, 0),
                            "tf32": True,
                            "n_gpu": devices,
                            "compute_capability": "sm_{}{}".format(*capability),
                        }
                        case = {"recipe": final, "capabilities": capabilities, "torch": torch}
                        place = f"{file.name}: {name}, {config['model_type']}"
                        label = f"{place}, {capabilities['compute_capability']} x {devices}"
                        found[json.dumps(case)] = {"name": label, **case}
    return list(found.values())


def test_axolotl_accepts_all_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n')
    given = cases(tmp_path, monkeypatch)
    # A recipe that Axolotl refuses shows that the test can fail.
    broken = {**given[0]["recipe"], "learning_rate": "fast"}
    given.append({**given[0], "name": "broken", "recipe": broken})
    output = python("-c", VALIDATE, lines="\n".join(map(json.dumps, given)), folder=tmp_path)
    answers = dict(
        json.loads(line.removeprefix("ANSWER "))
        for line in output.splitlines()
        if line.startswith("ANSWER ")
    )
    assert "learning_rate" in (answers.pop("broken") or "")
    assert len(answers) == len({case["name"] for case in given}) - 1 > 60
    assert {name: error for name, error in answers.items() if error} == {}
