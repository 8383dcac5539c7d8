"""`run_job.py`: what a command sees, what is refused, and how a command ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import run_job_cli
from conftest import is_running, wait_for
from run_job_cli import PROGRAM, SHOW, STUBBORN, first_line, python, refusal, run, started

import run_job
from portllm.jobs import supervision

lease_environment = run_job_cli.lease_environment
machine = run_job_cli.machine


def test_a_command_sees_what_it_holds() -> None:
    assert run(2, *python(SHOW), CUDA_VISIBLE_DEVICES="a,b,c").stdout == "a,b\n"
    assert run(0, *python(SHOW), CUDA_VISIBLE_DEVICES="a,b,c").stdout == "\n"


@pytest.mark.usefixtures("machine")
def test_indices_are_those_of_nvidia_smi() -> None:
    show = 'import os; print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"])'
    assert run(1, *python(show)).stdout == "0 PCI_BUS_ID\n"


@pytest.mark.parametrize(("given", "seen"), [({}, "unset"), ({"CUDA_VISIBLE_DEVICES": ""}, "")])
def test_without_devices_it_just_runs(given: dict[str, str], seen: str) -> None:
    done = run(1, *python(SHOW), **given)
    assert (done.returncode, done.stdout) == (0, f"{seen}\n")
    assert "no GPU on this machine; running on the CPU" in done.stderr


def test_in_a_slurm_job_the_devices_are_assigned() -> None:
    given = {"SLURM_JOB_ID": "12", "SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = run(2, *python(SHOW), **given)
    assert done.stdout == "0,1\n"
    assert "using the devices that SLURM has assigned: 0, 1" in done.stderr
    # A site that asks by --gres tells Snakemake `gpu: 0`.
    assert run(0, *python(SHOW), **given).stdout == "0,1\n"
    # Snakemake on a node where SLURM has assigned nothing.
    done = run(1, *python(SHOW), SLURM_JOB_ID="12")
    assert done.returncode == 0
    assert "WARNING run_job: gpu=1, but SLURM has assigned no device" in done.stderr
    # Snakemake with several jobs inside of one allocation.
    assert run(1, *python(SHOW), **given).stdout == "0\n"


@pytest.mark.parametrize("visible", ["0", ""])
def test_fewer_than_slurm_was_asked_for(visible: str) -> None:
    given = {"SLURM_JOB_ID": "12", "SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": visible}
    line = refusal("2", "true", **given)
    assert line.startswith(f"error: SLURM job 12 sees {len(visible)} devices")
    assert "gpu=2" in line


def test_no_such_command() -> None:
    assert refusal("0", "no-such-program") == "error: no-such-program: No such file or directory"


def test_no_number_of_seconds() -> None:
    line = refusal("1", "true", PORTLLM_GRACE_SECONDS="soon")
    assert line == "error: PORTLLM_GRACE_SECONDS: found 'soon', expected a number of seconds"


def test_snakemake_that_is_gone_already() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    line = refusal("1", "true", PORTLLM_SNAKEMAKE_PID=str(gone.pid))
    assert line == "error: Snakemake has ended, so true was not started"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1"], "no command; write it after `--`"),
        (["-1", "--", "true"], "expected 0 or more"),
        (["one", "--", "true"], "invalid int value: 'one'"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV),
    ],
)
def test_exit_codes_are_kept(code: str, status: int) -> None:
    assert run(1, *python(code)).returncode == status


def test_a_killed_command_names_memory() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run(
        [sys.executable, PROGRAM, "1", "--mem-mb", "4000", "--", *python(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert (
        "was killed (signal 9), most likely out of memory; it requested mem_mb=4000" in done.stderr
    )


@pytest.mark.parametrize(
    ("status", "memory_kills", "expected"),
    [
        (0, 1, None),
        (1, 0, None),
        (1, 2, "failed, and a process was killed for lack of memory meanwhile; it requested"),
        (-signal.SIGSEGV, 1, "was ended by signal 11"),
    ],
)
def test_a_launcher_whose_worker_was_killed(
    status: int, memory_kills: int, expected: str | None
) -> None:
    reason = run_job.failure_reason(status, memory_kills, "; it requested")
    assert reason == expected


def test_memory_kills_are_counted(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 123\noom_kill 4\n")
    assert supervision.memory_kills(counters) == 4
    assert supervision.memory_kills(tmp_path / "absent") == 0
    assert supervision.memory_kills() >= 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(number: int) -> None:
    code = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda found, _: sys.exit(f"stopped by {found}"))
print("ready", flush=True)
time.sleep(60)
"""
    with started(1, *python(code), CUDA_VISIBLE_DEVICES="a") as process:
        first_line(process)
        process.send_signal(number)
        _, output = process.communicate(timeout=20)
        # Without a terminal there is still time for a checkpoint.
        expected = signal.SIGTERM if number == signal.SIGHUP else number
        assert f"stopped by {int(expected)}" in output
        assert process.returncode == 1


def test_a_command_that_does_not_stop_is_killed() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "a", "PORTLLM_GRACE_SECONDS": "0.5"}
    with started(1, *python(STUBBORN), **variables) as process:
        assert first_line(process) == "ready"
        process.terminate()
        assert first_line(process) == "told"
        _, output = process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGKILL
        assert "did not stop within 0.5 s; killing it" in output
        assert "out of memory" not in output


def test_nothing_that_a_command_started_outlives_it(tmp_path: Path) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid, flush=True)
"""
    done = run(1, *python(code), CUDA_VISIBLE_DEVICES="a")
    assert done.returncode == 0
    assert not Path(f"/proc/{int(done.stdout)}").exists()


WRITE_AND_DIE = """
import os, signal, tempfile
open(tempfile.mkdtemp() + "/file", "w").write(tempfile.gettempdir())
print(tempfile.gettempdir(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
IGNORE_SIGTERM = """
import os, signal, sys, tempfile
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(tempfile.gettempdir(), os.getpid(), flush=True)
signal.pause()
"""


def test_the_temporary_files_of_a_killed_command_are_removed(tmp_path: Path) -> None:
    done = run(0, *python(WRITE_AND_DIE), TMPDIR=str(tmp_path))
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.glob("portllm-job-*")) == []


def test_temporary_files_stay_while_a_command_outlives_its_wrapper(tmp_path: Path) -> None:
    with started(0, *python(IGNORE_SIGTERM), TMPDIR=str(tmp_path)) as process:
        directory, command = first_line(process).split()
        process.kill()
        process.wait()
        try:
            run(0, "true", TMPDIR=str(tmp_path))
            assert Path(directory).is_dir()
        finally:
            os.kill(int(command), signal.SIGKILL)
        wait_for(lambda: not is_running(int(command)))
        run(0, "true", TMPDIR=str(tmp_path))
        assert list(tmp_path.glob("portllm-job-*")) == []
