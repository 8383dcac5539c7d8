"""Leases: each GPU of this machine is held by one job at a time.

A lease is a lock on one file per device. The job's wrapper (`run_job.py`) and the job's command
both keep the file open, so the kernel frees the device when the last of them ends. Processes that
the command starts may outlive both. They carry the lease's token in their environment, and the lock
file keeps the token until the lease is released.
"""

import json
import logging
import os
import re
import signal
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from portllm.errors import InputError
from portllm.jobs.devices import shown
from portllm.storage import locks

log = logging.getLogger(__name__)

DIRECTORY = "PORTLLM_LEASE_DIRECTORY"
"""Environment variable: directory of the lock files, by default one below /tmp."""
TOKEN = "PORTLLM_LEASE"
"""Environment variable of a command and everything it starts: the token of its lease."""

POLL_SECONDS = 0.1
REPORT_SECONDS = 300.0


def lease_directory(environment: Mapping[str, str]) -> Path:
    """Create the directory of the lock files, which all runs of a user on a machine share.

    It is not in TMPDIR, which may differ between runs. A SLURM job has a directory of its own,
    because each SLURM job may number its devices from 0.

    Raises:
        InputError: the directory belongs to another user.
    """
    job = environment.get("SLURM_JOB_ID")
    default = Path("/tmp") / "-".join(filter(None, ["portllm-devices", str(os.getuid()), job]))
    directory = Path(environment.get(DIRECTORY) or default)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise InputError(f"{directory} belongs to another user; set ${DIRECTORY}")
    return directory


def _read_record(path: Path) -> dict[str, str]:
    """Read who leases a device, or leased it without releasing it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def processes_of(token: str) -> list[int]:
    """List the processes that belong to a lease."""
    entry = f"{TOKEN}={token}".encode()
    processes = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and entry in (directory / "environ").read_bytes():
                processes.append(int(directory.name))
        except OSError:
            continue
    return processes


class Lease:
    """Devices that a job holds: UUID → the name that CUDA_VISIBLE_DEVICES takes."""

    def __init__(self, devices: dict[str, str], files: list[int], token: str) -> None:
        self.devices = devices
        self.files = files
        self.token = token

    def environment(self) -> dict[str, str]:
        """Return the variables for the command."""
        return {**shown(self.devices), TOKEN: self.token}

    def touch(self) -> None:
        """Update the lock files' times, so that cleaners of /tmp leave them alone."""
        for file in self.files:
            os.utime(file)

    def release(self) -> None:
        """Free the devices. Call it when no process of the job is left."""
        for file in self.files:
            os.ftruncate(file, 0)
            os.close(file)


class _Queue:
    """One job's attempts to lock devices of a pool."""

    def __init__(self, devices: dict[str, str], directory: Path, stop_seconds: float) -> None:
        self.devices = devices
        self.files = {
            uuid: directory / f"device-{re.sub(r'[^A-Za-z0-9.-]', '_', uuid)}" for uuid in devices
        }
        names = ",".join(sorted(devices)).encode()
        self.gate = directory / f"gate-{zlib.crc32(names):08x}"
        self.stop_seconds = stop_seconds
        self.stopping_since: dict[str, float] = {}

    def stop_orphans(self, uuid: str) -> bool:
        """Stop processes that outlived their wrapper and command; return whether any is left.

        They get SIGTERM, and SIGKILL after `stop_seconds`.
        """
        token = _read_record(self.files[uuid]).get("token")
        if not token:
            return False
        orphans = processes_of(token)
        if not orphans:
            # A process that is being started shows no environment for a moment.
            time.sleep(0.01)
            orphans = processes_of(token)
        since = self.stopping_since.setdefault(token, time.monotonic()) if orphans else 0.0
        for process in orphans:
            is_late = time.monotonic() > since + self.stop_seconds
            log.info("device %s: stopping process %d of a lost job", self.devices[uuid], process)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if is_late else signal.SIGTERM)
        return bool(orphans)

    def lock(self, count: int) -> dict[str, int]:
        """Lock `count` devices, or none: UUID → descriptor."""
        held: dict[str, int] = {}
        for uuid, file in self.files.items():
            descriptor = locks.try_lock(file, mode=0o600)
            if descriptor is None:
                continue
            if self.stop_orphans(uuid):
                os.close(descriptor)
                continue
            held[uuid] = descriptor
            if len(held) == count:
                return held
        for descriptor in held.values():
            os.close(descriptor)
        return {}

    def holders(self) -> str:
        """Describe which jobs hold which devices."""
        records = {name: _read_record(self.files[uuid]) for uuid, name in self.devices.items()}
        return ", ".join(
            f"{name} ({record.get('job')}, process {record.get('process')})"
            for name, record in records.items()
            if record
        )


def _wait_for_devices(queue: _Queue, count: int, pause: Callable[[], None]) -> dict[str, int]:
    next_report = time.monotonic()
    gate = None
    try:
        while True:
            # A job that waits for several devices holds the gate. Otherwise jobs that need only one
            # would take each device as it becomes free.
            if gate is None:
                gate = locks.try_lock(queue.gate, shared=count == 1, mode=0o600)
            if gate is not None and (held := queue.lock(count)):
                return held
            if gate is not None and count == 1:
                os.close(gate)
                gate = None
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + REPORT_SECONDS
                total, busy = len(queue.devices), queue.holders()
                log.info("waiting for %d of %d devices; busy: %s", count, total, busy)
            pause()
    finally:
        if gate is not None:
            os.close(gate)


def lease(
    count: int,
    devices: dict[str, str],
    directory: Path,
    *,
    job: str,
    stop_seconds: float,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> Lease:
    """Wait until `count` devices of a pool are free, and hold them.

    Args:
        count: how many devices, at least 1.
        devices: the pool, UUID → the name that CUDA_VISIBLE_DEVICES takes.
        directory: where the lock files are.
        job: the job's name, shown to jobs that wait for its devices.
        stop_seconds: seconds between SIGTERM and SIGKILL for processes of a lost job.
        pause: called between attempts; may raise.

    Raises:
        InputError: the pool is too small, or the directory does not support locks.
    """
    if count > len(devices):
        names = ", ".join(devices.values())
        raise InputError(f"gpu={count}: only {len(devices)} devices are available ({names})")
    try:
        held = _wait_for_devices(_Queue(devices, directory, stop_seconds), count, pause)
    except locks.LockingUnsupportedError as error:
        raise InputError(f"{directory} cannot hold locks ({error}); set ${DIRECTORY}") from None
    token = os.urandom(12).hex()
    record = json.dumps({"process": os.getpid(), "job": job, "token": token}).encode()
    for descriptor in held.values():
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)
    return Lease({uuid: devices[uuid] for uuid in held}, list(held.values()), token)
