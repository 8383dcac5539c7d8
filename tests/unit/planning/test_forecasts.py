"""GPU time from steps and tokens or from finished jobs; what does not fit a device or the disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from test_resource_requests import MODELS, priced

from portllm.planning import estimates, forecasts, plan_tables
from portllm.planning.planned_jobs import PlannedJob

TASKS = json.loads((PROJECT / "resources" / "task_sizes.json").read_text())
LORA = {"adapter": "lora", "bf16": True, "micro_batch_size": 4, "sequence_len": 2048}


def study(directory: Path, recipe: dict[str, Any] | None = None) -> estimates.PricedStudy:
    plain = priced(directory, recipe=recipe)
    return estimates.PricedStudy(
        plain.config, results=directory, known=MODELS, recipes=plain.recipes, known_tasks=TASKS
    )


def job(rule: str, *, cached: bool = False, path: str = "none", **names: str) -> PlannedJob:
    return PlannedJob(rule, tuple({"model": "m", **names}.items()), (path,), cached)


def patch(seed: int, **more: Any) -> PlannedJob:
    return job("train_patch", trained_on="base", task="sst2", seed=str(seed), **more)


def test_a_patch_takes_as_long_as_its_kernels_are_launched(tmp_path: Path) -> None:
    # 67,349 examples in batches of 4, 10 times: measured at 0.12 to 0.18 s a batch.
    seconds = forecasts.gpu_seconds(study(tmp_path), patch(1))
    assert 0.12 < seconds / (16_838 * 10) < 0.18


def test_an_evolution_takes_the_operations_of_its_tokens(tmp_path: Path) -> None:
    recipe = {**LORA, "max_steps": 100, "gradient_accumulation_steps": 2}
    evolve = job("evolve", version="v")
    # Forward, and backward without the gradients of weights: 4 operations a parameter and token.
    expected = 4 * 7_241_732_096 * (100 * 2 * 4 * 2048) / 125e12
    assert forecasts.gpu_seconds(study(tmp_path, recipe), evolve) == pytest.approx(expected)
    checkpointing = {**recipe, "gradient_checkpointing": True}
    more = forecasts.gpu_seconds(study(tmp_path, checkpointing), evolve)
    assert more == pytest.approx(1.5 * expected)


def test_finished_jobs_correct_the_forecast_and_unknown_ones_are_counted(tmp_path: Path) -> None:
    it = study(tmp_path, LORA)
    expected = forecasts.gpu_seconds(it, patch(1))
    finished = tmp_path / "finished"
    finished.mkdir()
    cost = {"wall_seconds": expected / 2, "devices": 1}
    (finished / "manifest.json").write_text(json.dumps({"cost": cost}))
    jobs = [patch(1, cached=True, path=str(finished)), patch(2), patch(3)]
    # The evolution's corpus does not exist yet, and no limit tells its rows.
    patches, evolutions = forecasts.forecast(it, [*jobs, job("evolve", version="v")])
    assert patches.seconds == pytest.approx(2 * expected / 2)
    assert patches.measured == 1
    assert (evolutions.seconds, evolutions.unknown) == (0, 1)


def test_jobs_that_no_device_holds_are_named(tmp_path: Path) -> None:
    whole = study(tmp_path, {"bf16": True, "sequence_len": 512})
    jobs = [job("evolve", version="v"), patch(1)]
    names = plan_tables.unfit_jobs(jobs, whole, plan_tables.Devices(1))
    # 16 bytes a parameter.
    assert [name for name in names if name.startswith("evolve m (all weights")] == list(names)
    assert plan_tables.unfit_jobs(jobs, whole, plan_tables.Devices(1, 200_000_000_000)) == {}
    small = plan_tables.unfit_jobs(jobs, whole, plan_tables.Devices(1, 16_000_000_000))
    assert len(small) == 2
    sharded = study(tmp_path, {"bf16": True, "sequence_len": 512, "fsdp_config": {"a": 1}})
    assert plan_tables.unfit_jobs(jobs, sharded, plan_tables.Devices(2)) == {}


def test_a_disk_that_is_too_small_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    rules = [plan_tables.PlannedRule("train_patch", (), gpu=True)]
    lines = list(plan_tables.plan_text(study(tmp_path), [patch(1)], rules))
    assert any(line.startswith("! the disk is too small: ") for line in lines)
    assert any("GPU hours; at least" in line for line in lines)
