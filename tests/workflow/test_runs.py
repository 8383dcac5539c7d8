"""Only one run at a time uses the results; stopped or killed runs need no cleanup."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    SNAKEMAKE,
    Checkout,
    is_running,
    make_checkout,
    processes_in,
    use_stand_ins,
    wait_for,
)

CONFIG = ("--configfile", "tests/studies/minute.yaml")
PATCH = "results/patches/tiny/base/demo_yes_no/seed1234"
PATIENT = Path(__file__).with_name("patient.py")


@pytest.fixture
def study(tmp_path: Path) -> Checkout:
    """A study of stand-ins whose trainings wait for a file called `go`."""
    checkout = make_checkout(tmp_path / "checkout")
    use_stand_ins(checkout)
    interpreter = checkout.directory / ".venvs/train/bin/python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PATIENT}" "$@"\n')
    return checkout


@pytest.fixture
def start(study: Checkout) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Returns a function that starts a run and waits until its training has started."""
    runs = []

    def begin() -> subprocess.Popen[str]:
        started = study.directory / "started"
        before = started.read_text() if started.exists() else ""
        run = study.start(f"run{len(runs)}.log", PATCH, *CONFIG)
        runs.append(run)
        wait_for(lambda: started.exists() and started.read_text() != before)
        return run

    yield begin
    for run in runs:
        run.kill()
        run.wait()
    for number in (study.directory / "started").read_text().split():
        if is_running(int(number)):
            os.kill(int(number), signal.SIGKILL)


def training(study: Checkout) -> int:
    return int((study.directory / "started").read_text().split()[-1])


def made(said: str) -> list[str]:
    """List the rules of the jobs that a run reports as started."""
    return re.findall(r"\] start (\w+)", said)


def test_a_second_run_stops_with_a_message(
    study: Checkout, start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = start()
    expected = (
        f"error: another Snakemake run is using results (process {first.pid} on "
        f"{socket.gethostname()}, since "
    )
    second = study.run("--cores", "1", PATCH, *CONFIG)
    assert second.returncode != 0
    assert expected in second.stdout
    assert "--unlock" not in second.stdout

    # The same results, from another working directory.
    other = make_checkout(tmp_path / "other")
    use_stand_ins(other)
    config = other.read("tests/studies/minute.yaml")
    config["pathvars"] = {"results": str(study.directory / "results")}
    other.write("tests/studies/minute.yaml", config)
    third = other.run("--cores", "1", *CONFIG)
    assert third.returncode != 0
    assert f"process {first.pid} on" in third.stdout

    # What only looks is not in the way.
    assert study.counts(PATCH, *CONFIG) == {"train_patch": 1}
    assert study.run("--summary", *CONFIG).returncode == 0
    assert "another Snakemake" not in study.run("--cores", "1", "plan", *CONFIG).stdout
    assert first.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_jobs_and_run_cleanly(
    study: Checkout, start: Callable[[], subprocess.Popen[str]], number: signal.Signals
) -> None:
    run = start()
    run.send_signal(number)
    assert run.wait(60) not in (0, -number)
    assert (study.directory / "stopped").read_text() == "SIGTERM"
    assert not is_running(training(study))
    assert f"{number.name}: stopping the jobs" in (study.directory / "run0.log").read_text()
    assert list((study.directory / ".snakemake/locks").glob("*")) == []
    assert not (study.directory / PATCH).exists()
    (study.directory / "go").touch()
    again = study.complete(PATCH, *CONFIG)
    assert made(again) == ["train_patch"]
    assert "was killed" not in again


def test_a_second_signal_kills_the_jobs(
    study: Checkout, start: Callable[[], subprocess.Popen[str]]
) -> None:
    run = start()
    os.kill(training(study), signal.SIGSTOP)  # so that it cannot stop by itself
    run.terminate()
    wait_for(lambda: "SIGTERM: stopping" in (study.directory / "run0.log").read_text())
    run.terminate()
    assert run.wait(60) > 0
    wait_for(lambda: not is_running(training(study)), seconds=10)
    assert not (study.directory / "stopped").exists()


def test_a_run_ends_when_the_reader_of_its_output_leaves(study: Checkout) -> None:
    run = subprocess.Popen(
        [SNAKEMAKE, "--cores", "1", PATCH, *CONFIG],
        cwd=study.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    started = study.directory / "started"
    try:
        wait_for(lambda: started.exists() and started.read_text(), seconds=60)
        assert run.stdout is not None
        run.stdout.close()
        # The end of this job cannot be reported any more.
        (study.directory / "go").touch()
        assert run.wait(30) == 0
        assert (study.directory / PATCH).exists()
        assert processes_in(study.directory) == []
        assert list((study.directory / ".snakemake/locks").glob("*")) == []
    finally:
        run.kill()
        run.wait()


def test_a_killed_run_needs_no_cleanup(
    study: Checkout,
    start: Callable[[], subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    run = start()
    run.kill()
    run.wait()
    os.kill(training(study), signal.SIGKILL)
    assert list((study.directory / ".snakemake/locks").glob("*.lock"))
    partial = study.directory / f"results/.x.partial-{socket.gethostname()}-999999999"
    partial.mkdir()
    runtime_caches = tmp_path / "caches/snakemake/snakemake/source-cache/snakemake-runtime-cache"
    assert list(temporary.glob("snakemake*"))
    assert list(runtime_caches.iterdir())
    (study.directory / "go").touch()
    again = study.complete(PATCH, *CONFIG)
    assert "An earlier run was killed" in again
    assert made(again) == ["train_patch"]
    assert list(runtime_caches.iterdir()) == []
    assert not partial.exists()
    # The wrapper of the first training may just be ending.
    wait_for(lambda: not list(temporary.iterdir()))


def damage_manifest(directory: Path) -> None:
    """Write a manifest with a larger size than the file has, as if it had been truncated."""
    sizes = {"made_by": (directory / "made_by").stat().st_size + 1000}
    (directory / "manifest.json").write_text(json.dumps({"sizes": sizes}))


def test_damaged_results_are_reported_and_rebuilt(study: Checkout) -> None:
    (study.directory / "go").touch()
    scores = "results/scores/tiny"
    # The second one scores a port of the patch, but does not need the patch itself any more.
    targets = (f"{scores}/base/demo_arithmetic.json", f"{scores}/second/demo_yes_no.json")
    study.complete(*targets, *CONFIG)
    assert study.planned(*targets, *CONFIG) == []
    patch, result = study.directory / PATCH, study.directory / targets[0]
    damage_manifest(patch)
    result.write_text('{"cells": [1, ')
    # Of no study: not our business.
    (study.directory / "results/scores/mine.json").write_text('{"cut')

    seen = study.run("--dry-run", *targets, *CONFIG).stdout
    assert f"{targets[0]} is damaged (14 bytes, expected 3)" in seen
    assert f"{PATCH} is damaged (made_by has " in seen
    assert "mine.json" not in seen
    assert result.read_text() == '{"cells": [1, '
    counts = {"train_patch": 1, "transplant": 2, "score": 2}
    assert study.counts(*targets, *CONFIG) == counts

    output = study.complete(*targets, *CONFIG)
    assert f"{PATCH} is damaged (made_by has " in output
    # The patch, its two ports and their scoring jobs; and the truncated result.
    assert sorted(made(output)) == ["score", "score", "train_patch", "transplant", "transplant"]
    assert not (patch / "manifest.json").exists()
    assert json.loads(result.read_text()) == {}
    assert "is damaged" not in study.complete(*targets, *CONFIG)
