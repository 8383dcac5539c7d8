"""Killed jobs leave no temporary directory, and living ones keep theirs."""

import os
import signal
from pathlib import Path

import pytest
import run_job_cli
from attacks.storm import Storm
from conftest import is_running, wait_for
from run_job_cli import first_line, python, run, started

lease_environment = run_job_cli.lease_environment

JOB = """
import os, signal, tempfile
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(tempfile.gettempdir() + "/file", "w").close()
print(tempfile.gettempdir(), os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_jobs_and_their_wrappers_are_killed(storm: Storm, tmp_path: Path) -> None:
    variables = {"TMPDIR": str(tmp_path)}
    for trial in storm.trials("kill", 15):
        with trial, started(0, *python(JOB), **variables) as wrapper:
            directory, number = first_line(wrapper).split()
            command = int(number)
            try:
                first = trial.random.choice((wrapper.pid, command))
                trial.describe("the wrapper first" if first == wrapper.pid else "the command first")
                os.kill(first, signal.SIGKILL)
                # Sweeps, as every job does.
                run(0, "true", **variables)
                if first == wrapper.pid:
                    assert Path(directory, "file").exists()
            finally:
                if is_running(command):
                    os.kill(command, signal.SIGKILL)
            wait_for(lambda command=command: not is_running(command))
            wrapper.wait()
            run(0, "true", **variables)
            assert list(tmp_path.glob("portllm-job-*")) == []
