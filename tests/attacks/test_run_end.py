"""Status 0 means done: a run fails if what was requested is not there and up to date at its end."""

import json
import sys

import pytest
from conftest import MINUTE, STAND_IN, Checkout, use_stand_ins

PATCH = "results/patches/tiny/base/demo_yes_no/seed1234"
TASK = "results/tasks/demo_yes_no"
BASE = "results/models/tiny/base"
TARGETS = (BASE, TASK, PATCH, "--configfile", MINUTE)


def attack_during_training(checkout: Checkout, command: str) -> None:
    """Run a shell command at the start of the next training."""
    python = checkout.directory / ".venvs/train/bin/python"
    once = f"test -e attacked || {{ touch attacked; {command}; }}"
    python.write_text(f'#!/bin/sh\n{once}\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')


@pytest.mark.parametrize(
    ("command", "output", "problem"),
    [
        (f"rm -r {TASK}", TASK, f"Missing output files: {TASK}"),
        (f"rm {BASE}/made_by", BASE, "made_by is missing"),
        (
            "echo x >>results/corpora/pretraining.jsonl",
            BASE,
            "Updated input files: results/corpora",
        ),
    ],
    ids=["deleted", "damaged", "outdated"],
)
def test_a_run_fails_if_its_results_changed_meanwhile(
    checkout: Checkout, command: str, output: str, problem: str
) -> None:
    use_stand_ins(checkout)
    attack_during_training(checkout, command)
    if "missing" in problem:
        checkout.complete(BASE, "--configfile", MINUTE)
        (checkout.directory / BASE / "manifest.json").write_text('{"sizes": {"made_by": 0}}')
        (checkout.directory / BASE / "made_by").write_text("")
    done = checkout.run("--cores", "1", *TARGETS)
    assert done.returncode == 1, done.stdout[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: all jobs ended, but {output} was changed meanwhile ({problem}")
    assert line.endswith("Rerun the same command to make it again")
    assert "Traceback" not in done.stdout
    assert "Finished " not in done.stdout
    checkout.complete(*TARGETS)
    assert checkout.counts(*TARGETS) == {}


def test_selections_and_forced_jobs_raise_no_alarm(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    checkout.complete("--until", "make_task_data", "--configfile", MINUTE)
    checkout.complete(
        "--omit-from", "evolve", "train_patch", "pretrain", "-k", "--configfile", MINUTE
    )
    for options in (
        ["--forceall"],
        ["--no-hooks", "--force"],
        ["--touch"],
        ["--batch", "train_patch=1/2"],
        [],
    ):
        output = checkout.complete(*TARGETS, *options)
        assert "error" not in output, options


def test_a_trainings_result_is_kept_until_it_is_accepted(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    work = checkout.directory / "results/checkpoints/train_patch/key"
    work.mkdir(parents=True)
    (work / "result.json").write_text(json.dumps({"output": PATCH}))
    attack_during_training(checkout, "exit 1")
    assert checkout.run("--cores", "1", *TARGETS).returncode == 1
    assert work.exists()
    checkout.complete(*TARGETS)
    assert not work.exists()
