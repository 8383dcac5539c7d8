"""Devices of this machine, and the lease that keeps each of them with one job at a time.

A device is held by a lock (flock) on a file of its own. The job's wrapper and the job's command
both keep that file open, so that the kernel frees the device when the last of them is gone, however
they ended. Processes that a command starts need not keep the file open; they are known by a token
in their environment, which the lock file names as long as nobody has said that they have ended.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from portllm.errors import InputError, nearest

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
POOL = "PORTLLM_DEVICES"
"""Environment variable: the devices to draw from, while CUDA_VISIBLE_DEVICES hides them."""
ALL = "all"
DIRECTORY = "PORTLLM_LEASE_DIRECTORY"
"""Environment variable: where the lock files are, in place of a directory below /tmp."""
TOKEN = "PORTLLM_LEASE"
"""Environment variable of a command and all that it starts: the lease that they belong to."""

POLL_SECONDS = 0.1
REPORT_SECONDS = 300.0


def hidden(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with which jobs see no device, and leases still know what to draw from.

    Where a Snakemake started this one, or has sent a job elsewhere, the devices may be hidden
    already; a scheduler's own word on the devices comes before what that Snakemake knew.
    """
    visible = environment.get(VISIBLE)
    given = ALL if visible is None else visible
    return {VISIBLE: "", POOL: visible or environment.get(POOL, given)}


def untouched(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables as they were before `hidden`."""
    named = environment.get(POOL, environment.get(VISIBLE, ALL))
    return {} if named == ALL else {VISIBLE: named}


def inventory() -> dict[str, str]:
    """Devices of this machine: unique name → the name that CUDA_VISIBLE_DEVICES takes.

    In the order of nvidia-smi, with the parts of a divided device (MIG) in its place.
    """
    if shutil.which("nvidia-smi") is None:
        return {}
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        said = " ".join((listed.stdout + listed.stderr).split())
        log.warning("nvidia-smi fails, so no device is used: %s", said)
        return {}
    return read_inventory(listed.stdout)


def read_inventory(listed: str) -> dict[str, str]:
    """Read what `nvidia-smi -L` says."""
    devices: dict[str, str] = {}
    whole = ""
    for line in listed.splitlines():
        if found := re.match(r"GPU (\d+): .*\(UUID: ([^)]+)\)", line):
            whole = found[2]
            devices[whole] = found[1]
        elif found := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line):
            # Of a divided device only the parts can be used.
            devices.pop(whole, None)
            devices[found[1]] = found[1]
    return devices


def _unique_name(name: str, known: Mapping[str, str]) -> str:
    """The one name of the device that CUDA_VISIBLE_DEVICES may name in several ways."""
    if not known or name in known:
        return name
    for unique, index in known.items():
        if name == index:
            return unique
    # CUDA takes the beginning of a name for the name.
    begun = [unique for unique in known if not name.isdigit() and unique.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    names = [*known.values(), *known]
    raise InputError(f"{VISIBLE}: this machine has no device {name!r}; {nearest(name, names)}")


def pool(environment: Mapping[str, str]) -> dict[str, str]:
    """Devices that jobs may use: unique name → the name that CUDA_VISIBLE_DEVICES takes.

    An existing CUDA_VISIBLE_DEVICES is the pool, else all of the machine. Empty on a machine
    without devices. Raises InputError where a device is named that is not there.
    """
    named = environment.get(POOL, environment.get(VISIBLE, ALL))
    if named == ALL:
        return inventory()
    names = []
    for name in map(str.strip, named.split(",")):
        # As CUDA reads it: what follows the first invalid name is not seen.
        if name in ("", "-1", "NoDevFiles"):
            break
        names.append(name)
    known = inventory() if names else {}
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(_unique_name(name, known), name)
    return found


def shown(devices: Mapping[str, str]) -> dict[str, str]:
    """Variables with which a command sees these devices, in this order, and no other."""
    variables = {VISIBLE: ",".join(devices.values())}
    if any(name.isdigit() and name != unique for unique, name in devices.items()):
        # CUDA counts the fastest device first unless told to count as nvidia-smi does.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables


def lease_directory(environment: Mapping[str, str]) -> Path:
    """Where the lock files are: one place for all runs of a user on a machine.

    Not in TMPDIR, which differs between runs. A SLURM job has its own, since its devices may be
    counted from 0 like another job's. Raises InputError where it belongs to someone else.
    """
    job = environment.get("SLURM_JOB_ID")
    default = Path("/tmp") / "-".join(filter(None, ["portllm-devices", str(os.getuid()), job]))
    directory = Path(environment.get(DIRECTORY) or default)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise InputError(f"{directory} belongs to another user; name a directory in ${DIRECTORY}")
    return directory


def _lock(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Lock a file without waiting; its descriptor, or None where somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Someone may have cleaned up between the opening and the locking.
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _read_record(path: Path) -> dict[str, str]:
    """Who holds a device, or held it and did not say that all its processes have ended."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def processes_of(token: str) -> list[int]:
    """Processes that belong to a lease."""
    entry = f"{TOKEN}={token}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and entry in (directory / "environ").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue
    return found


class Lease:
    """Devices that a job holds: unique name → the name that CUDA_VISIBLE_DEVICES takes."""

    def __init__(self, devices: dict[str, str], files: list[int], token: str) -> None:
        self.devices = devices
        self.files = files
        self.token = token

    def environment(self) -> dict[str, str]:
        """What the command and all that it starts find in their environment."""
        return {**shown(self.devices), TOKEN: self.token}

    def keep(self) -> None:
        """Show those who clean up old temporary files that the lock files are in use."""
        for file in self.files:
            os.utime(file)

    def release(self) -> None:
        """Free the devices; for when no process of the job is left."""
        for file in self.files:
            os.ftruncate(file, 0)
            os.close(file)


class _Queue:
    """One job's attempts to lock devices of a pool."""

    def __init__(self, devices: dict[str, str], directory: Path, stop_seconds: float) -> None:
        self.devices = devices
        self.files = {
            unique: directory / f"device-{re.sub(r'[^A-Za-z0-9.-]', '_', unique)}"
            for unique in devices
        }
        names = ",".join(sorted(devices)).encode()
        self.gate = directory / f"gate-{zlib.crc32(names):08x}"
        self.stop_seconds = stop_seconds
        self.stopping: dict[str, float] = {}

    def outlived(self, unique: str) -> bool:
        """Whether a free device is used still, by processes that outlived wrapper and command.

        They are told to stop, and killed when they do not.
        """
        token = _read_record(self.files[unique]).get("token")
        if not token:
            return False
        left = processes_of(token)
        if not left:
            # A process that is just being started shows no environment for a moment.
            time.sleep(0.01)
            left = processes_of(token)
        told = self.stopping.setdefault(token, time.monotonic()) if left else 0.0
        for process in left:
            late = time.monotonic() > told + self.stop_seconds
            log.info("device %s: stopping process %d of a lost job", self.devices[unique], process)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        return bool(left)

    def lock(self, wanted: int) -> dict[str, int]:
        """Lock as many devices as are wanted, or none: unique name → descriptor."""
        held: dict[str, int] = {}
        for unique, file in self.files.items():
            descriptor = _lock(file)
            if descriptor is None:
                continue
            if self.outlived(unique):
                os.close(descriptor)
                continue
            held[unique] = descriptor
            if len(held) == wanted:
                return held
        for descriptor in held.values():
            os.close(descriptor)
        return {}

    def holders(self) -> str:
        """Which devices others hold, and who."""
        records = {name: _read_record(self.files[unique]) for unique, name in self.devices.items()}
        return ", ".join(
            f"{name} ({record.get('job')}, process {record.get('process')})"
            for name, record in records.items()
            if record
        )


def lease(
    wanted: int,
    devices: dict[str, str],
    directory: Path,
    *,
    job: str,
    stop_seconds: float,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> Lease:
    """Hold `wanted` of the `devices`, all at once, as soon as they are free.

    `pause` is called between attempts and may raise. `stop_seconds` is the time between SIGTERM and
    SIGKILL that processes get whose wrapper is gone. Raises InputError where there are too few.
    """
    if wanted > len(devices):
        names = ", ".join(devices.values())
        raise InputError(f"gpu={wanted}: found {len(devices)} devices to draw from ({names})")
    queue = _Queue(devices, directory, stop_seconds)
    reported = -REPORT_SECONDS
    gate = None
    try:
        while True:
            # A job that waits for several keeps the gate, so that others of its pool, each content
            # with one, do not take every device that becomes free.
            if gate is None:
                gate = _lock(queue.gate, fcntl.LOCK_EX if wanted > 1 else fcntl.LOCK_SH)
            held = {} if gate is None else queue.lock(wanted)
            if held:
                break
            if gate is not None and wanted == 1:
                os.close(gate)
                gate = None
            if time.monotonic() >= reported + REPORT_SECONDS:
                reported = time.monotonic()
                log.info(
                    "waiting for %d of %d devices; busy: %s", wanted, len(devices), queue.holders()
                )
            pause()
    finally:
        if gate is not None:
            os.close(gate)
    token = os.urandom(12).hex()
    record = json.dumps({"process": os.getpid(), "job": job, "token": token}).encode()
    for descriptor in held.values():
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)
    return Lease({unique: devices[unique] for unique in held}, list(held.values()), token)
