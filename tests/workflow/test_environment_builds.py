"""Environments are built before the DAG, and changed pins neither schedule nor hide a job."""

import shutil

import pytest
from conftest import Checkout, add_environment, use_stand_ins

TASK = "results/tasks/demo_yes_no"
PATCH = "results/patches/demo/base/demo_yes_no/seed1234"


@pytest.fixture
def study(checkout: Checkout) -> Checkout:
    """The default study with stand-ins, nothing done yet."""
    use_stand_ins(checkout)
    return checkout


def change_pins(study: Checkout, name: str) -> None:
    """Add a line to an environment's pins, as an update of the project may."""
    with (study.directory / "envs" / f"{name}.txt").open("a") as pins:
        pins.write("# another pin\n")


def replace_builder(study: Checkout, *lines: str) -> None:
    """Replace what builds environments by a script."""
    (study.directory / "envs" / "make.sh").write_text("\n".join(lines) + "\n")


def remove(study: Checkout, name: str) -> None:
    """Remove an environment."""
    shutil.rmtree(study.directory / ".venvs" / name)


def test_changed_pins_keep_no_job_from_running(study: Checkout) -> None:
    change_pins(study, "train")
    assert len(study.planned()) == 118
    run = study.complete(PATCH)
    assert run.count("`make envs`") == 1
    assert "envs/train.txt changed" in run
    assert "Finished 4 jobs" in run
    assert (study.directory / PATCH).is_dir()
    assert "Nothing to be done" in study.complete(PATCH)


def test_missing_environments_are_built_before_the_jobs(study: Checkout) -> None:
    for name in ("train", "eval"):
        (study.directory / ".venvs" / name).rename(study.directory / ".venvs" / f"new-{name}")
    replace_builder(study, "cd $(dirname $0)/..; mv .venvs/new-$1 .venvs/$1; echo installed $1")
    dry = study.complete("--dry-run")
    assert "not built yet: train and eval" in dry
    assert "not built yet" in study.complete("plan")
    assert "not built yet" not in study.run("--lint").stdout
    assert not (study.directory / ".venvs" / "train").exists()
    run = study.complete(TASK)
    for name in ("train", "eval"):
        log = f"logs/environment/{name}.log"
        assert f"Building the {name} environment" in run
        assert log in run
        assert (study.directory / log).read_text() == f"installed {name}\n"
    assert run.index("Building the eval environment") < run.index("start make_task_data")
    assert "Finished 1 job" in run


def test_only_what_the_study_needs_is_built(study: Checkout) -> None:
    """A study of imported scores trains nothing and scores nothing."""
    remove(study, "train")
    remove(study, "eval")
    folder = study.directory / "lm_eval"
    folder.mkdir()
    (folder / "results_1.json").write_text("{}")
    source = {
        "directory": "lm_eval",
        "models": ["m"],
        "tasks": ["t"],
        "versions": {"base": 0},
        "cells": [{"match": {"path": ""}, "trained_on": "none", "applied_to": "base"}],
    }
    study.write("imported.yaml", {"imported": {"it": source}})
    assert "not built" not in study.complete("--dry-run", "--configfile", "imported.yaml")


def test_another_backend_needs_its_own_environment(study: Checkout) -> None:
    config = study.read("config.yaml")
    config["scoring"]["backend"] = "vllm"
    study.write("config.yaml", config)
    assert "not built yet: vllm." in study.complete("--dry-run")
    add_environment(study, "vllm")
    assert "not built" not in study.complete("--dry-run")


def test_a_failed_build_ends_the_run_with_one_line(study: Checkout) -> None:
    remove(study, "eval")
    replace_builder(study, "echo looking around; echo error: found no Python 3.11 >&2; exit 1")
    run = study.run("--cores", "1", TASK)
    assert run.returncode == 1
    (line,) = [line for line in run.stdout.splitlines() if "error" in line]
    assert line == (
        "error: the eval environment could not be built: found no Python 3.11; "
        "see logs/environment/eval.log"
    )
    assert "Traceback" not in run.stdout
    assert not (study.directory / TASK).exists()
    log = study.directory / "logs" / "environment" / "eval.log"
    assert log.read_text() == "looking around\nerror: found no Python 3.11\n"


def test_task_names_are_checked_once_lm_eval_is_installed(study: Checkout) -> None:
    environments = study.directory / ".venvs"
    tasks = environments / "eval" / "lib" / "python3.11" / "site-packages" / "lm_eval" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "boolq.yaml").write_text("task: boolq\ntraining_split: train\n")
    (environments / "eval").rename(environments / "new")
    replace_builder(study, "mv $(dirname $0)/../.venvs/new $(dirname $0)/../.venvs/eval")
    config = study.read("config.yaml")
    config["tasks"]["booolq"] = {}
    study.write("config.yaml", config)
    run = study.run("--cores", "1", TASK)
    assert run.returncode == 1
    assert "tasks.booolq: lm-eval has no task 'booolq'; nearest: boolq" in run.stdout
    assert not (study.directory / TASK).exists()


def test_conda_takes_their_place(study: Checkout) -> None:
    """Conda itself is not installed here: Snakemake says so, after it has read the workflow."""
    remove(study, "eval")
    change_pins(study, "train")
    run = study.run("--cores", "1", "--sdm=conda", TASK)
    assert "Building the" not in run.stdout
    assert "envs/train.txt" not in run.stdout
    assert "Building DAG" in run.stdout
