"""Many jobs of two users on four devices, with kills, stops and hostile names.

A job proves that it is alone on a device by a lock on a file of the test's own.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time
from collections import defaultdict
from itertools import count as counting
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from attacks.storm import Storm

from portllm.jobs import leases

POOL = {name: name for name in ("GPU-a", "GPU-b", "GPU-c", "GPU-d")}
JOBS = 40
AT_ONCE = 10
NOBODY = 65534
fork = multiprocessing.get_context("fork")


class Ground:
    """The files of one trial: a log of events, and a lock for each device."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.scope = str(directory)
        self._log = directory / "log"
        self._descriptor = os.open(self._log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self.locks = {name: directory / name for name in POOL}
        for path in self.locks.values():
            path.touch()

    def note(self, job: int, event: str) -> None:
        line = json.dumps([time.monotonic(), job, event])
        os.write(self._descriptor, f"{line}\n".encode())

    def times(self) -> dict[str, dict[int, float]]:
        """Read the log: event → job → first time."""
        times: dict[str, dict[int, float]] = defaultdict(dict)
        for at, job, event in map(json.loads, self._log.read_text().splitlines()):
            times[event].setdefault(job, at)
        return times


def use_devices(ground: Ground, job: int, count: int, seconds: float) -> None:
    """Lease devices, check that nobody else uses them, and free them."""
    descriptors = {name: os.open(path, os.O_RDWR) for name, path in ground.locks.items()}
    if os.getuid() == 0 and job % 2:
        os.setuid(NOBODY)
    # The first message comes when the job is in the queue.
    leases.log.setLevel("INFO")
    leases.log.addFilter(lambda _: ground.note(job, "waits") or True)
    ground.note(job, "comes")
    lease = leases.lease(
        count, POOL, ground.scope, job="job", stop_seconds=1, pause=lambda: time.sleep(0.02)
    )
    ground.note(job, "starts")
    for name in lease.devices:
        try:
            fcntl.flock(descriptors[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ground.note(job, "shares a device")
    time.sleep(seconds)
    for descriptor in descriptors.values():
        os.close(descriptor)
    ground.note(job, "ends")
    lease.release()


def disturb(ground: Ground, processes: dict[int, BaseProcess], random: Random) -> None:
    """Kill or stop one of the running jobs."""
    job = random.choice(sorted(processes))
    pid = processes[job].pid
    assert pid is not None
    if random.random() < 0.7:
        ground.note(job, "is killed")
        processes[job].kill()
    else:
        ground.note(job, "is stopped")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(pid, signal.SIGCONT)


def hostile_names(scope: str, random: Random) -> list[socket.socket]:
    """Bind names that look like those of jobs."""
    parts = ["", "waiting", "holding", "device", "x" * 40, "-1", "0", "9" * 30, "\n", "é"]
    sockets = []
    for _ in range(20):
        name = "/".join([leases.prefix(scope), *random.choices(parts, k=random.randint(1, 6))])
        sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with contextlib.suppress(OSError):
            sockets[-1].bind(b"\0" + name.encode()[:107])
    return sockets


def run_jobs(ground: Ground, random: Random) -> dict[int, int]:
    """Run all jobs to their end; return how many devices each needed."""
    counts: dict[int, int] = {}
    running: dict[int, BaseProcess] = {}
    deadline = time.monotonic() + 120
    for job in counting():
        if job < JOBS:
            counts[job] = random.choice([1, 1, 1, 2, 2, 3, 4])
            arguments = (ground, job, counts[job], random.uniform(0, 0.1))
            running[job] = fork.Process(target=use_devices, args=arguments)
            running[job].start()
        if job % 4 == 3 and job < JOBS:
            disturb(ground, running, random)
        while len(running) >= AT_ONCE or (job >= JOBS and running):
            assert time.monotonic() < deadline, "jobs wait for ever"
            time.sleep(0.005)
            running = {job: process for job, process in running.items() if process.is_alive()}
        if job >= JOBS:
            return counts
    raise AssertionError


def check(times: dict[str, dict[int, float]], counts: dict[int, int]) -> None:
    """Check that no device was shared, no job was lost, and none was delayed by later ones."""
    assert not times["shares a device"]
    assert set(times["ends"]) | set(times["is killed"]) == set(counts)
    ends = {**times["is killed"], **times["ends"]}
    for job, since in times["waits"].items():
        if job in times["is stopped"]:
            continue  # devices are not kept for it meanwhile
        until = times["starts"].get(job, ends[job])
        later = [other for other in times["starts"] if times["comes"][other] > since]
        for at in (times["starts"][other] for other in later):
            in_use = sum(
                counts[other] for other in later if times["starts"][other] <= at < ends[other]
            )
            assert not since < at < until or in_use <= len(POOL) - counts[job], f"job {job} waits"


def test_devices_are_neither_shared_nor_lost_nor_taken_out_of_turn(
    storm: Storm, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    for number, trial in enumerate(storm.trials("kill", 4)):
        with trial:
            ground = Ground(tmp_path / str(number))
            names = hostile_names(ground.scope, trial.random)
            counts = run_jobs(ground, trial.random)
            check(ground.times(), counts)
            for name in names:
                name.close()
