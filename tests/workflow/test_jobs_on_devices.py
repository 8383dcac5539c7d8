"""Jobs on a machine with several devices: leases, limits, and the end of Snakemake."""

import re
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import SNAKEMAKE, Checkout, is_running, use_stand_ins, wait_for
from test_bad_input import refusal

POOL = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
VERSIONS = ("base", "tales", "lessons")
RECORDING = """#!/bin/sh
echo "$(date +%s%N) $$ $(basename "$1") $CUDA_VISIBLE_DEVICES" >>started
sleep 0.2
"{stand_in}" "$@"
echo "$(date +%s%N) $$" >>ended
"""
LONG = """#!/bin/sh
trap 'echo $$ >>told; exit 1' TERM
echo $$ >>running
sleep 300 &
wait
"""


@pytest.fixture
def study(checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """The default study with stand-ins, on a machine with four devices."""
    use_stand_ins(checkout)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(POOL))
    monkeypatch.setenv("PORTLLM_LEASE_SCOPE", str(tmp_path))
    return checkout


def let(study: Checkout, environment: str, script: str) -> None:
    """Replace the Python of an environment by a shell script."""
    interpreter = study.directory / ".venvs" / environment / "bin" / "python"
    stand_in = interpreter.with_name("stand-in")
    interpreter.rename(stand_in)
    interpreter.write_text(script.format(stand_in=stand_in))
    interpreter.chmod(0o755)


def set_resources(study: Checkout, **stages: dict[str, int]) -> None:
    config = study.read("config.yaml")
    config["resources"] = stages
    study.write("config.yaml", config)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_each_job_gets_its_own_devices(study: Checkout) -> None:
    for environment in ("train", "eval"):
        let(study, environment, RECORDING)
    set_resources(study, evolve={"gpu": 2}, base={"gpu": 0})
    targets = [f"results/scores/demo/{version}/demo_arithmetic.json" for version in VERSIONS]
    study.complete(*targets, "--cores", "8", "--resources", "gpu=4")
    ends = {}
    for line in lines(study.directory / "ended"):
        when, process = line.split()
        ends[process] = int(when)
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in POOL}
    seen: dict[str, set[int]] = {}
    for line in lines(study.directory / "started"):
        when, process, program, *visible = line.split()
        names = visible[0].split(",") if visible else []
        seen.setdefault(program, set()).add(len(names))
        for name in names:
            spans[name].append((int(when), ends[process]))
    assert seen == {
        "make_corpus.py": {0},
        "make_task_data.py": {0},
        "pretrain.py": {0},
        "train_patch.py": {1},
        "evolve.py": {2},
        "transplant.py": {0},
        "score.py": {1},
    }
    for name, held in spans.items():
        held.sort()
        assert held, f"{name} was never used"
        assert all(one[1] <= other[0] for one, other in pairwise(held)), name


def test_the_number_of_devices_retrains_an_evolution(study: Checkout) -> None:
    """A recipe's batch size is per device; the run's limit of devices does not matter."""
    target = "results/models/demo/lessons"
    study.complete(target, "--resources", "gpu=1")
    set_resources(study, evolve={"mem_mb": 5000, "threads": 2})
    for limit in ("gpu=1", "gpu=4"):
        assert study.planned(target, "--resources", limit) == []
    set_resources(study, evolve={"gpu": 2})
    assert {rule for rule, _ in study.planned(target, "--resources", "gpu=4")} == {"evolve"}


@pytest.mark.parametrize("limit", [0, 4])
def test_requesting_more_devices_than_the_run_may_use_is_an_error(
    study: Checkout, limit: int
) -> None:
    set_resources(study, evolve={"gpu": 8})
    line = refusal(study, "--resources", f"gpu={limit}")
    assert "config.yaml: resources.evolve.gpu: found 8" in line
    assert f"--resources gpu={limit}" in line


def test_an_evolution_of_its_own_leaves_the_devices_of_the_others(study: Checkout) -> None:
    config = study.read("config.yaml")
    name = next(iter(config["evolutions"]))
    config["evolutions"][name]["resources"] = {"gpu": 8}
    study.write("config.yaml", config)
    line = refusal(study, "--resources", "gpu=4")
    assert f"evolutions.{name}.resources.gpu: found 8, but the run may use 4" in line


@pytest.mark.parametrize("rule", ["evolve", "score"])
def test_set_resources_above_the_limit_is_an_error(study: Checkout, rule: str) -> None:
    options = ("--resources", "gpu=4", "--set-resources", f"{rule}:gpu=8")
    assert f"--set-resources {rule}:gpu=8: the run may use 4 devices" in refusal(study, *options)
    fewer = study.run("--dry-run", "--resources", "gpu=4", "--set-resources", f"{rule}:gpu=4")
    assert fewer.returncode == 0


def test_requesting_more_devices_than_exist_is_an_error(study: Checkout) -> None:
    set_resources(study, evolve={"gpu": 5})
    done = study.run("results/models/demo/lessons", "--cores", "1")
    assert done.returncode != 0
    assert f"error: gpu=5: only 4 devices are available ({', '.join(POOL)})" in done.stdout


def test_devices_that_cannot_divide_the_batch_of_a_patch_are_an_error(study: Checkout) -> None:
    set_resources(study, patch={"gpu": 3})
    line = refusal(study)
    assert "config.yaml: resources.patch.gpu: task demo_arithmetic: 3 GPUs cannot share" in line


def test_a_patch_is_told_its_devices(study: Checkout) -> None:
    set_resources(study, patch={"gpu": 2})
    target = "results/patches/demo/base/demo_yes_no/seed1234"
    done = study.run("--dry-run", "--printshellcmds", target)
    assert done.returncode == 0
    assert re.search(r"run_job.py. 2 .*train_patch.py. --gpus 2 ", done.stdout)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_jobs_stop_when_snakemake_is_killed(study: Checkout, number: int) -> None:
    let(study, "train", LONG)
    patches = [
        f"results/patches/demo/base/demo_{task}/seed1234" for task in ("arithmetic", "yes_no")
    ]
    running, reported = study.directory / "running", study.directory / "told"
    snakemake = subprocess.Popen(
        [SNAKEMAKE, *patches, "--cores", "2", "--resources", "gpu=4"],
        cwd=study.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(lines(running)) == 2)
        snakemake.send_signal(number)
        wait_for(lambda: not any(is_running(int(job)) for job in lines(running)))
    finally:
        snakemake.kill()
        snakemake.wait()
    assert sorted(lines(reported)) == sorted(lines(running))
    logs = [path.read_text() for path in (study.directory / "logs/train_patch").rglob("*.log")]
    assert len(logs) == 2
    if number == signal.SIGHUP:
        # Snakemake itself stops its jobs before it goes.
        return
    assert all("Snakemake has ended; stopping the command" in log for log in logs)
