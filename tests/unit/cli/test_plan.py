"""`portllm plan`: which workflow and which Snakemake it runs, and with what."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.cli import plan
from portllm.errors import InputError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A workflow whose Snakemake prints its directory and arguments."""
    directory = tmp_path / "checkout"
    snakemake = directory / ".venvs" / "workflow" / "bin" / "snakemake"
    for place in (snakemake.parent, directory / "workflow_scripts" / "portllm"):
        place.mkdir(parents=True)
    (directory / "Snakefile").touch()
    snakemake.write_text('#!/bin/sh\npwd\nfor word; do echo "$word"; done\nexit 3\n')
    snakemake.chmod(0o755)
    return directory


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROJECT / ".venvs/workflow/bin/python", "-m", "portllm", "plan", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_workflow_around_the_current_directory_is_planned(checkout: Path) -> None:
    below = checkout / "config" / "mine"
    below.mkdir(parents=True)
    (below / "study.yaml").touch()
    done = run(below, "--configfile", "study.yaml", "--config", "study={seeds: [1]}")
    assert done.stdout.splitlines() == [
        *(str(checkout), "plan", "--quiet", "all"),
        *("--configfile", "config/mine/study.yaml", "--config", "study={seeds: [1]}"),
    ]
    assert done.returncode == 3, "the status is Snakemake's"


def test_a_configuration_file_that_is_missing_is_one_line(checkout: Path) -> None:
    done = run(checkout, "--configfile", "absent.yaml")
    assert done.returncode == 1
    assert done.stderr == "error: --configfile: no such file: absent.yaml\n"


def test_outside_of_a_workflow_the_packages_own_checkout_is_planned(tmp_path: Path) -> None:
    assert plan.find_checkout(tmp_path) == PROJECT
    with pytest.raises(InputError, match=r"no PortLLM workflow in .* or above"):
        plan.find_checkout(tmp_path, package=tmp_path / "site-packages" / "portllm")


def test_without_snakemake_the_command_that_installs_it_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / ".venvs/workflow/bin/snakemake").unlink()
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(InputError, match=rf"no Snakemake: run `make envs` in {checkout}"):
        plan.find_snakemake(checkout)
