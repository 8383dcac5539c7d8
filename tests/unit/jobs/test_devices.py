"""The pool of devices, the lease on them, and the end of a command, through the program."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

import run_job
from portllm.errors import InputError
from portllm.jobs import devices, supervision

PROGRAM = PROJECT / "workflow_scripts" / "run_job.py"
LISTED = """GPU 0: NVIDIA H200 (UUID: GPU-1f0a)
GPU 1: NVIDIA H200 (UUID: GPU-1f7c)
"""
DIVIDED = """GPU 0: NVIDIA A100 (UUID: GPU-aa)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100 (UUID: GPU-bb)
"""
SHOW = 'import os; print(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))'


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this test's own, on a machine without devices, outside SLURM and Snakemake."""
    monkeypatch.setenv("PORTLLM_LEASE_DIRECTORY", str(tmp_path / "leases"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "PORTLLM_DEVICES", "PORTLLM_ENGINE"):
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


# Which devices there are


def test_what_nvidia_smi_lists() -> None:
    assert devices.read_inventory(LISTED) == {"GPU-1f0a": "0", "GPU-1f7c": "1"}
    assert devices.read_inventory(DIVIDED) == {"MIG-1": "MIG-1", "MIG-2": "MIG-2", "GPU-bb": "1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GPU-1f0a": "0", "GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f7c,0"}, {"GPU-1f7c": "GPU-1f7c", "GPU-1f0a": "0"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f7"}, {"GPU-1f7c": "GPU-1f7"}),
        ({"CUDA_VISIBLE_DEVICES": "1,GPU-1f7c"}, {"GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, {"GPU-1f0a": "0"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {}),
        (
            {"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": "all"},
            {"GPU-1f0a": "0", "GPU-1f7c": "1"},
        ),
    ],
)
@pytest.mark.usefixtures("machine")
def test_one_name_for_each_device(given: dict[str, str], expected: dict[str, str]) -> None:
    assert devices.pool(given) == expected


@pytest.mark.usefixtures("machine")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no device 'GPU-1f0b'; nearest: GPU-1f0a"):
        devices.pool({"CUDA_VISIBLE_DEVICES": "GPU-1f0b"})
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES: .* no device '7'; known: 0, 1"):
        devices.pool({"CUDA_VISIBLE_DEVICES": "7"})


@pytest.mark.parametrize(
    ("given", "pool"),
    [
        ({}, "all"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        # A Snakemake inside another one's job, and one that a scheduler has started.
        ({"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": "0,1"}, "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "3", "PORTLLM_DEVICES": "0,1"}, "3"),
    ],
)
def test_devices_are_hidden_but_not_forgotten(given: dict[str, str], pool: str) -> None:
    assert devices.hidden(given) == {"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": pool}
    assert devices.hidden(devices.hidden(given)) == devices.hidden(given)


# What a command sees


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
    assert "there is no device to use: running without one" in done.stderr


@pytest.mark.usefixtures("machine")
def test_an_index_and_a_name_of_one_device_exclude_each_other() -> None:
    wait = python("import time; print(1, flush=True); time.sleep(60)")
    with started(1, *wait, CUDA_VISIBLE_DEVICES="GPU-1f7c") as first:
        assert first_line(first) == "1"
        with started(1, *wait, CUDA_VISIBLE_DEVICES="1") as second:
            assert second.stderr is not None
            assert "waiting for 1 of 1 devices; busy: 1 (python" in second.stderr.readline()
            # All of the machine's: the other one is taken.
            assert run(1, *python(SHOW)).stdout == "0\n"
            first.kill()
            assert first_line(second) == "1"


def test_in_a_slurm_job_the_devices_are_assigned() -> None:
    given = {"SLURM_JOB_ID": "12", "SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = run(2, *python(SHOW), **given)
    assert done.stdout == "0,1\n"
    assert "devices that SLURM has assigned: 0, 1" in done.stderr
    assert not list(Path(os.environ["PORTLLM_LEASE_DIRECTORY"]).glob("*"))
    # A site that asks by --gres tells Snakemake `gpu: 0`.
    assert run(0, *python(SHOW), **given).stdout == "0,1\n"
    # Snakemake on a node where SLURM has assigned nothing.
    done = run(1, *python(SHOW), SLURM_JOB_ID="12")
    assert done.returncode == 0
    assert "WARNING run_job: SLURM has assigned no device, though gpu=1" in done.stderr
    # Snakemake with several jobs inside of one allocation.
    assert run(1, *python(SHOW), **given).stdout == "0\n"


# What is refused


def refusal(*arguments: str, **variables: str) -> str:
    done = run(*arguments, **variables)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_more_than_there_are() -> None:
    line = refusal("3", "true", CUDA_VISIBLE_DEVICES="a,b")
    assert line == "error: gpu=3: found 2 devices to draw from (a, b)"


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


def test_someone_elses_directory() -> None:
    if os.getuid() != 0:
        line = refusal("1", "true", CUDA_VISIBLE_DEVICES="a", PORTLLM_LEASE_DIRECTORY="/usr")
        assert "/usr belongs to another user" in line
        return
    theirs = Path(os.environ["PORTLLM_LEASE_DIRECTORY"])
    theirs.mkdir()
    os.chown(theirs, 12345, -1)
    assert f"{theirs} belongs to another user" in refusal("1", "true", CUDA_VISIBLE_DEVICES="a")


def test_snakemake_that_is_gone_already() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    line = refusal("1", "true", PORTLLM_ENGINE=str(gone.pid))
    assert line == "error: Snakemake is gone, so true is not started"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1"], "no command: write it after `--`"),
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


# How a command ends


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
        "was killed (signal 9), most likely out of memory; it asked for mem_mb=4000" in done.stderr
    )


@pytest.mark.parametrize(
    ("status", "memory_kills", "expected"),
    [
        (0, 1, None),
        (1, 0, None),
        (1, 2, "failed, and a process was killed for lack of memory meanwhile; it asked"),
        (-signal.SIGSEGV, 1, "was ended by signal 11"),
    ],
)
def test_a_launcher_whose_worker_was_killed(
    status: int, memory_kills: int, expected: str | None
) -> None:
    said = run_job.why_ended(status, memory_kills, "; it asked")
    assert said == expected


def test_memory_kills_are_counted(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 123\noom_kill 4\n")
    assert supervision.memory_kills(counters) == 4
    assert supervision.memory_kills(tmp_path / "absent") == 0
    assert supervision.memory_kills() >= 0


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


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
        _, said = process.communicate(timeout=20)
        # Without a terminal there is still time for a checkpoint.
        expected = signal.SIGTERM if number == signal.SIGHUP else number
        assert f"stopped by {int(expected)}" in said
        assert process.returncode == 1


def test_a_command_that_does_not_stop_is_killed() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "a", "PORTLLM_GRACE_SECONDS": "0.5"}
    with started(1, *python(STUBBORN), **variables) as process:
        assert first_line(process) == "ready"
        process.terminate()
        assert first_line(process) == "told"
        _, said = process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGKILL
        assert "has not stopped within 0.5 s and is killed" in said
        assert "out of memory" not in said


def test_nothing_that_a_command_started_outlives_it(tmp_path: Path) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid, flush=True)
"""
    done = run(1, *python(code), CUDA_VISIBLE_DEVICES="a")
    assert done.returncode == 0
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_the_command_stops_when_only_the_wrapper_is_killed() -> None:
    code = """
import signal, time
def stop(*_):
    print("told", flush=True)
    time.sleep(0.5)
    print("done", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
    with started(1, *python(code), CUDA_VISIBLE_DEVICES="a") as process:
        assert first_line(process) == "ready"
        process.kill()
        assert first_line(process) == "told"
        with started(1, *python(SHOW), CUDA_VISIBLE_DEVICES="a") as other:
            assert other.stderr is not None
            assert "waiting for 1 of 1 devices; busy: a (" in other.stderr.readline()
            # Not before the command has ended.
            assert first_line(process) == "done"
            assert first_line(other) == "a"


def test_what_outlived_wrapper_and_command_is_stopped_by_the_next() -> None:
    code = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1]])
print(os.getpid(), flush=True)
time.sleep(60)
"""
    with started(1, *python(code), STUBBORN, CUDA_VISIBLE_DEVICES="a") as process:
        command = first_line(process)
        # The command's pid and the child's "ready" come in either order.
        command = first_line(process) if command == "ready" else (first_line(process), command)[1]
        process.kill()
        os.kill(int(command), signal.SIGKILL)
        done = run(1, *python(SHOW), CUDA_VISIBLE_DEVICES="a", PORTLLM_GRACE_SECONDS="0.5")
        assert done.stdout == "a\n"
        assert "of a lost job" in done.stderr
        assert first_line(process) == "told"


# Many jobs, and killings

POOL = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
JOBS = 200
USE = """
import fcntl, os, random, sys, time
held = []
for name in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
    held.append(open(f"{sys.argv[1]}/used-{name}", "w"))
    try:
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        open(f"{sys.argv[1]}/twice-{name}", "w").close()
print(os.getpid(), flush=True)
time.sleep(random.uniform(0, float(sys.argv[2])))
"""
# The device is used by a process that the command has started, and that does not hold the lease.
THROUGH_A_CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[3], *sys.argv[1:3]])
sys.exit(child.wait())
"""


class Crowd:
    """Runs jobs side by side, of which many are killed: the wrapper, the command, or both."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.random = random.Random(1234)
        self.left = JOBS
        self.lock = threading.Lock()
        self.endings: list[tuple[str, int]] = []

    def one(self, wanted: int, through_a_child: bool, victim: str, delay: float) -> None:
        code = THROUGH_A_CHILD if through_a_child else USE
        seconds = "0.5" if through_a_child else "0.06"
        with started(wanted, *python(code), str(self.directory), seconds, USE) as process:
            if victim == "anything":
                time.sleep(delay)
                process.kill()
            elif victim != "nothing":
                user = first_line(process)
                if user and "command" in victim:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(parent_below(int(user), process.pid), signal.SIGKILL)
                if "wrapper" in victim:
                    process.kill()
            process.communicate(timeout=60)
            self.endings.append((victim, process.returncode))

    def work(self) -> None:
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
                wanted = self.random.choice([1, 1, 1, 2])
                through_a_child = self.random.random() < 0.3
                victim = self.random.choice(
                    ["nothing"] * 4 + ["anything", "wrapper", "command", "wrapper and command"]
                )
                delay = self.random.uniform(0, 0.3)
            self.one(wanted, through_a_child, victim, delay)


def parent_below(process: int, ancestor: int) -> int:
    """The ancestor of a process that is the child of a given one."""
    while True:
        stat = Path(f"/proc/{process}/stat")
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            raise ProcessLookupError from None
        if parent in (ancestor, 1):
            return process
        process = parent


@pytest.mark.slow
def test_no_device_is_held_twice_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(POOL))
    monkeypatch.setenv("PORTLLM_GRACE_SECONDS", "5")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    crowd = Crowd(tmp_path)
    threads = [threading.Thread(target=crowd.work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(crowd.endings) == JOBS
    assert {status for victim, status in crowd.endings if victim == "nothing"} == {0}
    killed = [status for victim, status in crowd.endings if victim != "nothing" and status != 0]
    assert len(killed) > JOBS / 5
    assert {path.name for path in tmp_path.glob("used-*")} == {f"used-{name}" for name in POOL}
    assert not list(tmp_path.glob("twice-*"))
    # All of them at once: none is lost.
    assert run(4, *python(SHOW)).stdout == ",".join(POOL) + "\n"
