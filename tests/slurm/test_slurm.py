"""Studies on a real SLURM controller, and failures of jobs, nodes and the controller."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from background import (
    MINI_SLURM,
    PROFILE,
    STUDY,
    Cluster,
    StandInStudy,
    stand_in_study,
    wait_until,
)
from conftest import finish_minute_study, make_checkout

BASE = "results/models/tiny/base"
PATCH = "results/patches/tiny/base/demo_yes_no/seed{}"
SCORE = "results/scores/tiny/base/demo_yes_no.json"

Scenario = Callable[[StandInStudy, Cluster], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    """Run this test together with the others, because each mostly waits."""
    SCENARIOS[run.__name__] = run
    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster for all tests."""
    root = tmp_path_factory.mktemp("cluster")
    cluster = Cluster({**os.environ, "MINI_SLURM": str(root)})
    try:
        cluster.do("start")
        yield cluster
    finally:
        subprocess.run([MINI_SLURM, "stop"], env=cluster.environment, check=True)


@pytest.fixture(scope="module")
def started(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """All registered tests, started at once."""
    studies = {name: stand_in_study(tmp_path_factory.mktemp(name) / "it") for name in SCENARIOS}
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {name: pool.submit(run, studies[name], cluster) for name, run in SCENARIOS.items()}
    for study in studies.values():
        study.end()


@scenario
def four_gpus_each_for_one_job_at_a_time(study: StandInStudy, cluster: Cluster) -> None:
    patches = [PATCH.format(seed) for seed in range(6)]
    study.hold(*patches)
    # An environment that is not there yet is made here, once, and not by the jobs that need it.
    made = study.folder / "environments"
    make = study.checkout.directory / "envs" / "make.sh"
    made_from = study.checkout.directory / ".venvs" / "train" / "made_from"
    digest = made_from.read_text().strip()
    lines = (f'echo "$1 ${{SLURM_JOB_ID:-here}}" >>{made}', f"echo {digest} >{made_from}")
    make.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    made_from.unlink()
    run = study.start(*patches, partition="gpu2")
    first = study.begun(*patches, times=4)
    wait_until("all are submitted", lambda: study.submissions() == 7)
    assert len(study.events("begin", *patches)) == 4
    assert sorted(note["CUDA_VISIBLE_DEVICES"] for note in first) == ["0", "1", "2", "3"]
    study.release(*patches)
    run.complete()
    assert made.read_text() == "train here\n"
    assert study.executions() == dict.fromkeys(study.executions(), 1)
    times = {
        event: {note["output"]: note for note in study.events(event, *patches)}
        for event in ("begin", "end")
    }
    for device in "0123":
        held = sorted(
            (begin["time"], times["end"][output]["time"])
            for output, begin in times["begin"].items()
            if begin["CUDA_VISIBLE_DEVICES"] == device
        )
        assert held
        assert all(end < begin for (_, end), (begin, _) in pairwise(held))


@scenario
def a_cancelled_job_is_run_again(study: StandInStudy, cluster: Cluster) -> None:
    patch = PATCH.format(1234)
    study.hold(patch)
    # Asked for in the other style: sbatch --gres instead of --gpus.
    style = ("train_patch:gpu=0", "train_patch:gres=gpu:1")
    run = study.start(SCORE, partition="gpu3", resources=style)
    (job,) = study.begun(patch)
    assert len(job["CUDA_VISIBLE_DEVICES"].split(",")) == 1
    subprocess.run(["scancel", job["SLURM_JOB_ID"]], check=True)
    study.release(patch)
    run.complete()
    assert study.executions()[patch] == 2
    assert study.executions()[BASE] == study.executions()[SCORE] == 1


@scenario
def a_job_past_its_time_limit_is_run_again(study: StandInStudy, cluster: Cluster) -> None:
    patch = PATCH.format(1234)
    study.hold(patch)
    run = study.start(SCORE, partition="gpu3")
    (job,) = study.begun(patch)
    # As if the study had asked for a minute, SLURM's least.
    limit = [f"JobId={job['SLURM_JOB_ID']}", "TimeLimit=1"]
    subprocess.run(["scontrol", "update", *limit], check=True)
    wait_until("TIMEOUT", lambda: cluster.jobs().get(job["SLURM_JOB_ID"]) == "TIMEOUT")
    study.release(patch)
    run.complete()
    assert study.executions()[patch] == 2
    assert study.executions()[BASE] == study.executions()[SCORE] == 1


@scenario
def a_job_of_a_node_that_is_gone_is_requeued(study: StandInStudy, cluster: Cluster) -> None:
    patch = PATCH.format(1234)
    study.hold(patch)
    run = study.start(SCORE, partition="gpu4")
    (job,) = study.begun(patch)
    cluster.do("fail-node", "gpu4")
    number = job["SLURM_JOB_ID"]
    wait_until("the job requeued", lambda: cluster.jobs()[number] == "PENDING")
    study.release(patch)
    cluster.do("start-node", "gpu4")
    run.complete()
    first, second = study.events("begin", patch)
    # The same job in SLURM's eyes: Snakemake has only waited.
    assert first["SLURM_JOB_ID"] == second["SLURM_JOB_ID"]
    assert study.executions()[BASE] == study.executions()[SCORE] == 1
    assert study.submissions() == 3


@scenario
def a_killed_run_is_taken_up_again(study: StandInStudy, cluster: Cluster) -> None:
    patches = [PATCH.format(seed) for seed in range(4)]
    study.hold(*patches)
    # Two of the four devices each, so that two of the four jobs run at a time.
    two = ["train_patch:gpu=2"]
    run = study.start(*patches, partition="gpu5", resources=two)
    study.begun(*patches, times=2)
    wait_until("all are submitted", lambda: study.submissions() == 5)
    run.kill()
    # While no Snakemake watches, one job ends, another starts, and the fourth is still pending.
    first, *_ = (note["output"] for note in study.begun(*patches, times=2))
    study.release(first)
    study.begun(*patches, times=3)
    again = study.start(*patches, partition="gpu5", resources=two)
    wait_until("it waits", lambda: "Waiting for running jobs of an earlier run" in again.output)
    waiting = next(output for output in patches if not study.events("begin", output))
    left = [output for output in patches if output not in (first, waiting)]
    assert f"patch_wildcards_tiny_base_demo_yes_no_{waiting[-1]} " in again.output
    study.release(*left, waiting)
    said = again.complete()
    assert said.count("has been submitted with SLURM jobid") == 1
    assert study.executions() == dict.fromkeys(study.executions(), 1)
    assert set(patches) < set(study.executions())
    # What ended unobserved is as well recorded as the rest.
    planned = study.checkout.planned
    assert planned(*patches, "--configfile", *study.studies) == []
    study.change(patch={"max_steps": 4})
    changed = planned(*patches, "--configfile", *study.studies)
    assert sorted(jobs["seed"] for rule, jobs in changed if rule == "train_patch") == list("0123")


def test_the_minute_study_gives_the_scores_of_a_local_run(
    started: dict[str, Future[None]], cluster: Cluster, shared_directory: Path, tmp_path: Path
) -> None:
    there = make_checkout(tmp_path / "there")
    with ThreadPoolExecutor() as pool:
        local = pool.submit(finish_minute_study, shared_directory)
        # The cluster's GPUs are names only.
        done = there.run(
            *(*PROFILE, "--slurm-keep-successful-logs", "--configfile", STUDY),
            PORTLLM_CPU_FALLBACK="1",
        )
        assert done.returncode == 0, done.stdout[-6000:]
        here = local.result()
    for file in ("scores.csv", "tables/main.csv", "tables/recovery.csv"):
        ours, theirs = (checkout.directory / "results" / file for checkout in (here, there))
        assert ours.read_bytes() == theirs.read_bytes(), file
    items = list(here.directory.glob("results/scores/*/*/*.samples.jsonl"))
    assert len(items) == 9
    for path in items:
        other = there.directory / path.relative_to(here.directory)
        assert path.read_bytes() == other.read_bytes(), path.name
    # What may use the network, and what takes no time, ran where Snakemake ran.
    logs = list(there.directory.glob("logs/slurm/*/**/*.log"))
    submitted = {path.relative_to(there.directory).parts[2] for path in logs}
    computing = ["pretrain", "train_patch", "evolve", "transplant", "merge", "score"]
    computing += ["measure_movement", "measure_norms", "measure_geometry", "measure_loss_slice"]
    assert submitted == {f"rule_{name}" for name in computing}
    # A job has the cores of its node, however few the login node has.
    assert all("--cores all" in path.read_text() for path in logs)
    assert "Nothing to be done" in there.complete("--configfile", STUDY)


@pytest.mark.parametrize("name", SCENARIOS)
def test_behaviour_on_the_cluster(name: str, started: dict[str, Future[None]]) -> None:
    started[name].result()


def test_a_controller_restart_does_not_affect_a_run(
    started: dict[str, Future[None]], cluster: Cluster, tmp_path: Path
) -> None:
    for future in started.values():
        future.exception()
    study = stand_in_study(tmp_path / "checkout")
    patch = PATCH.format(1234)
    study.hold(patch)
    run = study.start(SCORE)
    study.begun(patch)
    cluster.do("stop-controller")
    study.release(patch)
    # Long enough that the executor asks meanwhile, and gets no answer.
    time.sleep(40)
    assert study.events("end", patch)
    cluster.do("start-controller")
    try:
        run.complete()
    finally:
        study.end()
    assert study.executions() == dict.fromkeys(study.executions(), 1)
    assert study.submissions() == 3
