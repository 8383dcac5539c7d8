"""Leases: each GPU of this machine is held by one job at a time.

A lease is a bound Unix socket per device, whose name is in Linux's abstract namespace. The kernel
gives such a name to one socket at a time, whichever user asks, and frees it when the last process
that has the socket open ends, however it ends. No file stands for the name, so it cannot be
removed, replaced, redirected by a link, or left behind.

The job's wrapper (`run_job.py`) and the job's command both keep the sockets open. Processes that
the command starts may outlive both. They carry the names of their devices in their environment,
where the next job that holds a device finds them.

Waiting jobs bind names too. The list of all names, /proc/net/unix, is the queue.
"""

import errno
import hashlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from portllm.errors import InputError
from portllm.jobs import processes
from portllm.jobs.devices import shown
from portllm.jobs.queues import Request, assign

log = logging.getLogger(__name__)

SCOPE = "PORTLLM_LEASE_SCOPE"
"""Environment variable: jobs with different values do not see each other's leases."""
LEASE = "PORTLLM_LEASE"
"""Environment variable of a command and everything it starts: the names of its devices."""

POLL_SECONDS = 0.1
REPORT_SECONDS = 300.0
MAX_NAME_BYTES = 107
NAMES = Path("/proc/net/unix")
# Names below the scope. Any program can bind names: those of another form are ignored.
_DEVICE = re.compile(r"device/(\w+)")
_WAITING = re.compile(r"waiting/(\d{1,9})/(\d{1,4})/(\d{1,4})/(\w+)/(\d+)")
_HOLDING = re.compile(r"holding/(\d{1,9})/(\w+)/(\d+)/(.*)")


def lease_scope(environment: Mapping[str, str]) -> str:
    """Return which jobs lease from each other: by default all of this machine, of all users.

    A SLURM job has a scope of its own, because each SLURM job may number its devices from 0.
    """
    return environment.get(SCOPE) or environment.get("SLURM_JOB_ID") or "machine"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prefix(scope: str) -> str:
    """Return how the names of a scope begin."""
    return f"portllm/{_digest(scope)}"


def _bind(name: str) -> socket.socket | None:
    """Hold a name until the socket is closed; None if another socket holds it.

    Raises:
        InputError: the system has no abstract Unix sockets.
    """
    try:
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        holder.bind(b"\0" + name.encode()[:MAX_NAME_BYTES])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            holder.close()
            return None
        raise InputError(f"devices cannot be leased: Unix socket: {error.strerror}") from None
    return holder


class _Holder(NamedTuple):
    """The job that holds a device. Only its ticket is known, 0, once its wrapper has ended."""

    ticket: int = 0
    process: str = "unknown"
    job: str = "a job without its wrapper"


class _Board:
    """All jobs of a scope that wait for or hold devices."""

    def __init__(self, names_begin: str) -> None:
        # The list is complete except for names that appear or vanish while it is read. It decides
        # who may try to take a device; only `_bind` gives it.
        text = NAMES.read_text(errors="replace") if NAMES.exists() else ""
        names = re.findall(rf" @{names_begin}/(.*)", text)
        holders = [match.groups() for match in map(_HOLDING.fullmatch, names) if match]
        known = {device: _Holder(int(ticket), *rest) for ticket, device, *rest in holders}
        devices = [match[1] for match in map(_DEVICE.fullmatch, names) if match]
        self.holders = {device: known.get(device, _Holder()) for device in devices}
        pools: dict[tuple[int, int, str], dict[int, str]] = {}
        for match in filter(None, map(_WAITING.fullmatch, names)):
            ticket, count, position, device, process = match.groups()
            pools.setdefault((int(ticket), int(count), process), {})[int(position)] = device
        self.last_ticket = max([0, *(key[0] for key in pools), *(h.ticket for h in known.values())])
        # Devices are not kept for a job that is stopped (Ctrl-Z), since it cannot take them.
        self.requests = [
            Request(ticket, count, tuple(pool[position] for position in sorted(pool)))
            for (ticket, count, process), pool in pools.items()
            if not processes.is_stopped(int(process))
        ]

    def assigned_to(self, ticket: int) -> list[str]:
        """Return the devices that a waiting job may take now, or none."""
        tickets = {device: holder.ticket for device, holder in self.holders.items()}
        return assign(self.requests, tickets).get(ticket, [])


def _processes_of(names: set[str]) -> list[int]:
    """List the processes whose lease includes one of these devices."""
    return [
        process
        for process in processes.all_processes()
        if not names.isdisjoint((processes.variable(process, LEASE) or "").split(","))
    ]


class Lease:
    """Devices that a job holds: UUID → the name that CUDA_VISIBLE_DEVICES takes."""

    def __init__(
        self, devices: dict[str, str], names: set[str], sockets: ExitStack, files: list[int]
    ) -> None:
        self.devices = devices
        self.names = names
        self.files = files
        """Descriptors that hold the devices. The command must inherit them."""
        self._sockets = sockets

    def environment(self) -> dict[str, str]:
        """Return the variables for the command."""
        return {**shown(self.devices), LEASE: ",".join(sorted(self.names))}

    def release(self) -> None:
        """Free the devices. Call it when no process of the job is left."""
        self._sockets.close()

    def stop_orphans(self, stop_seconds: float, pause: Callable[[], None]) -> None:
        """Stop processes that outlived the wrapper and the command of an earlier lease.

        They get SIGTERM, and SIGKILL after `stop_seconds`. Those of other users cannot be found.
        """
        deadline = time.monotonic() + stop_seconds
        orphans = _processes_of(self.names)
        if not orphans:
            # A process that is being started shows no environment for a moment.
            time.sleep(0.01)
            orphans = _processes_of(self.names)
        for process in orphans:
            log.info("stopping process %d of a lost job, which may use the device", process)
        while orphans:
            is_late = time.monotonic() > deadline
            for process in orphans:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL if is_late else signal.SIGTERM)
            pause()
            orphans = _processes_of(self.names)


class _Queue:
    """One job's place in the queue for the devices of its pool."""

    def __init__(
        self,
        count: int,
        devices: Mapping[str, str],
        scope: str,
        job: str,
        pause: Callable[[], None],
    ) -> None:
        self.prefix = prefix(scope)
        self.count = count
        self.job = re.sub(r"[^\w.-]", "_", job, flags=re.ASCII)
        self.pool = {_digest(uuid): (uuid, name) for uuid, name in devices.items()}
        self.pause = pause

    def bind(self, *parts: object) -> socket.socket | None:
        return _bind("/".join(map(str, (self.prefix, *parts))))

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Keep other jobs from joining the queue and from taking devices meanwhile."""
        while (gate := self.bind("gate")) is None:
            self.pause()
        with gate:
            yield

    @contextmanager
    def place(self) -> Iterator[int]:
        """Wait in the queue; yield the ticket."""
        with ExitStack() as places:
            with self.gate():
                ticket = _Board(self.prefix).last_ticket + 1
                for position, device in enumerate(self.pool):
                    name = ("waiting", ticket, self.count, position, device, os.getpid())
                    if (place := self.bind(*name)) is not None:
                        places.enter_context(place)
            yield ticket

    def take(self, ticket: int) -> Lease | None:
        """Take devices if it is this job's turn."""
        if not _Board(self.prefix).assigned_to(ticket):
            return None
        with self.gate(), ExitStack() as sockets:
            chosen = _Board(self.prefix).assigned_to(ticket)
            held = [self.bind("device", device) for device in chosen]
            for place in filter(None, held):
                sockets.enter_context(place)
            if not held or None in held:
                return None
            for device in chosen:
                note = self.bind("holding", ticket, device, os.getpid(), self.job)
                if note is not None:
                    sockets.enter_context(note)
            return Lease(
                dict(self.pool[device] for device in chosen),
                {f"{self.prefix}/{device}" for device in chosen},
                sockets.pop_all(),
                [place.fileno() for place in held if place],
            )

    def describe(self, ticket: int) -> str:
        """Describe what this job waits for."""
        board = _Board(self.prefix)
        busy = [
            f"{name} ({holder.job}, process {holder.process})"
            for device, (_, name) in self.pool.items()
            if (holder := board.holders.get(device))
        ]
        earlier = sum(request.ticket < ticket for request in board.requests)
        queue = f"; {earlier} jobs are waiting since earlier" if earlier else ""
        return f"{self.count} of {len(self.pool)} devices; busy: {', '.join(busy)}{queue}"


def lease(
    count: int,
    devices: dict[str, str],
    scope: str,
    *,
    job: str,
    stop_seconds: float,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> Lease:
    """Wait until `count` devices of a pool are free, and hold them.

    Args:
        count: how many devices, at least 1.
        devices: the pool, UUID → the name that CUDA_VISIBLE_DEVICES takes.
        scope: which jobs lease from each other.
        job: the job's name, shown to jobs that wait for its devices.
        stop_seconds: seconds between SIGTERM and SIGKILL for processes of a lost job.
        pause: called between attempts; may raise.

    Raises:
        InputError: the pool is too small, or the system cannot hold leases.
    """
    if count > len(devices):
        names = ", ".join(devices.values())
        raise InputError(f"gpu={count}: only {len(devices)} devices are available ({names})")
    queue = _Queue(count, devices, scope, job, pause)
    next_report = time.monotonic()
    with queue.place() as ticket:
        while (held := queue.take(ticket)) is None:
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + REPORT_SECONDS
                log.info("waiting for %s", queue.describe(ticket))
            pause()
    held.stop_orphans(stop_seconds, pause)
    return held
