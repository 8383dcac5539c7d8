"""Run `run_job.py` as a rule does: on invented devices, with leases of the test's own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

PROGRAM = PROJECT / "workflow_scripts" / "run_job.py"
LISTED = """GPU 0: NVIDIA H200 (UUID: GPU-1f0a)
GPU 1: NVIDIA H200 (UUID: GPU-1f7c)
"""
SHOW = 'import os; print(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))'


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.fixture(autouse=True)
def lease_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this test's own, on a machine without devices, outside SLURM and Snakemake."""
    monkeypatch.setenv("PORTLLM_LEASE_SCOPE", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "PORTLLM_DEVICES", "PORTLLM_SNAKEMAKE_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two devices, as far as nvidia-smi says."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat <<END\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def words(wanted: int | str, *command: str) -> list[str]:
    return [sys.executable, str(PROGRAM), str(wanted), "--", *command]


def python(code: str) -> tuple[str, ...]:
    # -S: these commands need no packages, and there are hundreds of them.
    return (sys.executable, "-S", "-c", code)


def run(wanted: int | str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(wanted, *command),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextlib.contextmanager
def started(wanted: int, *command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words(wanted, *command),
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def refusal(*arguments: str, **variables: str) -> str:
    done = run(*arguments, **variables)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
