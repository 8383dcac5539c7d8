"""Resource requests: from the study or estimated from the model, growing with each attempt."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import PROJECT

from portllm.errors import InputError
from portllm.planning import estimates, known_versions, resource_requests
from portllm.study import validation, yaml_files

MODELS = known_versions.hub_models(PROJECT / "resources" / "models")
NAMES = {"model": "m", "trained_on": "base", "task": "sst2", "method": "direct", "seed": "1"}


def priced(
    directory: Path,
    hub: str = "mistralai/Mistral-7B-v0.1",
    recipe: dict[str, Any] | None = None,
    **settings: Any,
) -> estimates.PricedStudy:
    """A study of one model, of which only the configuration is known, one task, one evolution."""
    config = {
        "models": {"m": {"base": {"hub": hub}}},
        "tasks": {"sst2": {}},
        "corpora": {"c": {"sources": [{"files": ["c.jsonl"]}]}},
        "evolutions": {"v": {"corpus": "c", "recipe": "r.yaml"}},
        "resources": settings,
    }
    validation.check_schema(
        config, yaml_files.read_yaml(PROJECT / "config" / "schema.yaml", what="schema")
    )
    return estimates.PricedStudy(
        config, results=directory, known=MODELS, recipes={"v": recipe or {}}
    )


def test_the_study_overrides_estimates(tmp_path: Path) -> None:
    study = priced(tmp_path, patch={"mem_mb": 123, "threads": 7, "runtime": 5, "gpu": 0})
    asked = {
        name: resource_requests.requested(study, "train_patch", NAMES, name, 99)
        for name in ("mem_mb", "gpu")
    }
    assert asked == {"mem_mb": 123, "gpu": 0}
    assert resource_requests.requested(study, "train_patch", NAMES, "threads", 99) == 7
    assert resource_requests.requested(study, "train_patch", NAMES, "runtime", 99, attempt=3) == 15


def test_requests_grow_with_each_attempt(tmp_path: Path) -> None:
    study = priced(tmp_path)
    for name in ("mem_mb", "runtime"):
        first, second = (
            resource_requests.requested(study, "train_patch", NAMES, name, 1, a) for a in (1, 2)
        )
        assert second == 2 * first
    for name in ("gpu", "threads"):
        first, second = (
            resource_requests.requested(study, "train_patch", NAMES, name, 1, a) for a in (1, 2)
        )
        assert second == first


RULES = [
    "train_patch",
    "evolve",
    "score",
    "merge",
    "measure_movement",
    "measure_norms",
    "measure_geometry",
    "measure_loss_slice",
]


@pytest.mark.parametrize("rule", RULES)
def test_memory_requests_cover_the_weights(tmp_path: Path, rule: str) -> None:
    names = {**NAMES, "version": "v", "applied_to": "v"}
    requested = resource_requests.requested(priced(tmp_path), rule, names, "mem_mb", 1)
    large = resource_requests.requested(
        priced(tmp_path, "google/gemma-2-9b"), rule, names, "mem_mb", 1
    )
    # 7.24 billion parameters in bfloat16; merges and measurements never hold all of them.
    whole = ("train_patch", "evolve", "score", "measure_loss_slice")
    assert requested > (14_483 if rule in whole else 0)
    if rule in ("measure_norms", "measure_geometry"):
        # One projection at a time, in float64; the largest of the two models is Mistral's.
        assert requested > 14336 * 4096 * 8 / 1e6
        assert large <= requested
    else:
        assert large > requested or rule == "merge"
    assert requested % 500 == 0


def test_every_rule_requests_resources_under_its_own_name() -> None:
    asked = {}
    for file in sorted((PROJECT / "rules").glob("*.smk")):
        for text in re.split(r"^(?=(?:rule|checkpoint) )", file.read_text(), flags=re.M):
            name = re.match(r"rule (\w+):", text)
            if name:
                asked[name[1]] = set(re.findall(r'asks\("(\w+)"', text))
    assert asked["measure_geometry"] == {"measure_geometry"}
    assert {name: names for name, names in asked.items() if names - {name}} == {}


def test_measurements_take_the_resources_of_their_stage(tmp_path: Path) -> None:
    study = priced(tmp_path, analyse={"mem_mb": 123, "gpu": 2})
    names = {**NAMES, "applied_to": "v"}
    for rule in ("measure_geometry", "measure_norms", "measure_loss_slice"):
        assert resource_requests.requested(study, rule, names, "mem_mb", 1) == 123
    assert resource_requests.requested(study, "measure_loss_slice", names, "gpu", 1) == 2


def test_without_a_gpu_host_memory_covers_everything(tmp_path: Path) -> None:
    with_gpu = resource_requests.requested(priced(tmp_path), "train_patch", NAMES, "mem_mb", 1)
    alone = resource_requests.requested(
        priced(tmp_path, patch={"gpu": 0}), "train_patch", NAMES, "mem_mb", 1
    )
    assert alone > 2 * with_gpu


def test_without_devices_jobs_ask_for_what_they_use_on_the_cpu(tmp_path: Path) -> None:
    study = priced(tmp_path)
    with_gpu = resource_requests.requested(study, "train_patch", NAMES, "mem_mb", 1)
    study.has_devices = False
    alone = resource_requests.requested(study, "train_patch", NAMES, "mem_mb", 1)
    # Weights, activations and logits in float32.
    assert alone > 4 * 7_241 > with_gpu


def test_each_scoring_process_has_imports_of_its_own(tmp_path: Path) -> None:
    names = {**NAMES, "applied_to": "base"}
    one, four = (
        resource_requests.requested(priced(tmp_path, score={"gpu": n}), "score", names, "mem_mb", 1)
        for n in (1, 4)
    )
    assert 3 * 590 < four - one < 14_000, "no further copies of the weights"


def test_an_unknown_model_is_looked_up_again_once_it_is_fetched(tmp_path: Path) -> None:
    study = priced(tmp_path, "somebody/unknown")
    assert resource_requests.requested(study, "train_patch", NAMES, "mem_mb", 1) == 1
    assert "somebody/unknown: unknown architecture" in study.warnings()[0]
    tiny.save_model(tmp_path / "models" / "m" / "base", hidden_size=64)
    assert resource_requests.requested(study, "train_patch", NAMES, "mem_mb", 1) >= 2000
    assert study.warnings() == []


def test_an_unknown_model_gets_the_rule_s_default(tmp_path: Path) -> None:
    study = priced(tmp_path, "somebody/unknown")
    assert (
        resource_requests.requested(study, "train_patch", NAMES, "mem_mb", 4000, attempt=2) == 8000
    )
    assert resource_requests.requested(study, "train_patch", NAMES, "runtime", 720) == 720


def test_sharded_evolutions_request_as_many_devices_as_they_need(tmp_path: Path) -> None:
    names = {"model": "m", "version": "v"}
    plain = priced(tmp_path, recipe={"bf16": True, "sequence_len": 512})
    assert resource_requests.requested(plain, "evolve", names, "gpu", 1) == 1
    sharded = priced(
        tmp_path, recipe={"bf16": True, "deepspeed": "zero3.json", "micro_batch_size": 8}
    )
    # 12 bytes a parameter and the activations: more than 87 GB.
    assert resource_requests.requested(sharded, "evolve", names, "gpu", 1) >= 2
    resource_requests.check_devices(sharded, {}, None)
    for limit in (0, 1):
        resource_requests.check_devices(plain, {}, limit)
    with pytest.raises(InputError, match=r"evolutions.v: its recipe shards m over \d devices"):
        resource_requests.check_devices(sharded, {}, 1)


def test_one_evolution_has_resources_of_its_own(tmp_path: Path) -> None:
    study = priced(tmp_path, evolve={"gpu": 1, "runtime": 60})
    first = study.config["evolutions"]["v"]
    study.config["evolutions"]["w"] = {**first, "resources": {"gpu": 4}}
    study.recipes["w"] = study.recipes["v"]
    asked = {
        (version, name): resource_requests.requested(
            study, "evolve", {"model": "m", "version": version}, name, 99
        )
        for version in ("v", "w")
        for name in ("gpu", "runtime")
    }
    assert asked == {("v", "gpu"): 1, ("w", "gpu"): 4, ("v", "runtime"): 60, ("w", "runtime"): 60}


def test_threads_follow_the_size(tmp_path: Path) -> None:
    names = {"model": "m", "version": "v"}
    assert resource_requests.requested(priced(tmp_path), "evolve", names, "threads", 1) == 4
    scratch = {"corpus": "c", "steps": 1, "config": {"model_type": "mistral", "hidden_size": 64}}
    study = priced(tmp_path)
    small = {**scratch, "vocabulary_size": 300}
    study.versions["m", "v"] = known_versions.obtained_version(
        {"from_scratch": small}, tmp_path, {}, None
    )
    assert resource_requests.requested(study, "evolve", names, "threads", 1) == 1
