"""Leases: one job per device at a time, however its processes end."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import run_job_cli
from run_job_cli import SHOW, STUBBORN, first_line, python, refusal, run, started

lease_environment = run_job_cli.lease_environment
machine = run_job_cli.machine


def test_more_than_there_are() -> None:
    line = refusal("3", "true", CUDA_VISIBLE_DEVICES="a,b")
    assert line == "error: gpu=3: only 2 devices are available (a, b)"


WAIT = python("import time; print(1, flush=True); time.sleep(60)")


@pytest.mark.parametrize(
    ("devices", "counts", "third"),
    [
        # One device for the job that came first, not two for the next.
        ("a,b", (2, 1, 2), "waiting"),
        # Two devices, of which the next job could use the free one.
        ("a,b", (1, 2, 1), "waiting"),
        # The third job uses a device that the second does not need.
        ("a,b,c", (2, 2, 1), "holding"),
    ],
)
def test_first_come_first_served(devices: str, counts: tuple[int, ...], third: str) -> None:
    with contextlib.ExitStack() as stack:
        jobs = []
        for count, state in zip(counts, ("holding", "waiting", third), strict=True):
            job = stack.enter_context(started(count, *WAIT, CUDA_VISIBLE_DEVICES=devices))
            jobs.append(job)
            assert job.stderr is not None
            assert state in job.stderr.readline()
        jobs[0].kill()
        assert first_line(jobs[1]) == "1"
        assert jobs[2].poll() is None  # it has not had its turn before
        jobs[1].kill()
        assert first_line(jobs[2]) == "1"


def test_no_device_is_kept_for_a_stopped_job() -> None:
    with started(1, *WAIT, CUDA_VISIBLE_DEVICES="a") as first:
        assert first_line(first) == "1"
        with started(1, *WAIT, CUDA_VISIBLE_DEVICES="a") as stopped:
            assert stopped.stderr is not None
            assert "waiting for" in stopped.stderr.readline()
            stopped.send_signal(signal.SIGSTOP)
            first.kill()
            assert run(1, *python(SHOW), CUDA_VISIBLE_DEVICES="a").stdout == "a\n"
            stopped.send_signal(signal.SIGCONT)
            assert first_line(stopped) == "1"


@pytest.mark.usefixtures("machine")
def test_an_index_and_a_name_of_one_device_exclude_each_other() -> None:
    with started(1, *WAIT, CUDA_VISIBLE_DEVICES="GPU-1f7c") as first:
        assert first_line(first) == "1"
        with started(1, *WAIT, CUDA_VISIBLE_DEVICES="1") as second:
            assert second.stderr is not None
            assert "waiting for 1 of 1 devices; busy: 1 (python" in second.stderr.readline()
            # All of the machine's: the other one is taken.
            assert run(1, *python(SHOW)).stdout == "0\n"
            first.kill()
            assert first_line(second) == "1"


def test_the_command_stops_when_only_the_wrapper_is_killed(tmp_path: Path) -> None:
    may_end = tmp_path / "may_end"
    code = """
import os, signal, sys, time
def stop(*_):
    print("told", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.05)
    print("done", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
    with started(1, *python(code), str(may_end), CUDA_VISIBLE_DEVICES="a") as process:
        assert first_line(process) == "ready"
        process.kill()
        assert first_line(process) == "told"
        with started(1, *python(SHOW), CUDA_VISIBLE_DEVICES="a") as other:
            assert other.stderr is not None
            assert "waiting for 1 of 1 devices; busy: a (" in other.stderr.readline()
            may_end.touch()
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
