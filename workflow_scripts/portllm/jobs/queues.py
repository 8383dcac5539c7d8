"""Which waiting job gets which devices: first come, first served, with backfill.

A job that needs several devices may wait while some are free. Later jobs may use these, but they
never hold a device that an earlier job needs: while a job waits for `count` of the devices in its
pool, later jobs hold at most the other `len(pool) - count`. So the job starts at the latest when
the jobs before it have ended, however many jobs come later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A job that waits for devices."""

    ticket: int
    """Position in the queue; later jobs have higher tickets."""
    count: int
    """Number of devices that the job needs."""
    pool: tuple[str, ...]
    """Devices that the job may use, in order of preference."""


def assign(requests: Iterable[Request], holders: Mapping[str, int]) -> dict[int, list[str]]:
    """Choose the jobs that may start now.

    Args:
        requests: all waiting jobs.
        holders: each device that is in use → the ticket of the job that holds it.

    Returns:
        Ticket → devices, for each job that may start.
    """
    tickets = dict(holders)
    blocked: list[Request] = []
    starting: dict[int, list[str]] = {}
    for request in sorted(requests, key=lambda request: request.ticket):
        chosen: list[str] = []
        for device in request.pool:
            taken = {**tickets, **dict.fromkeys([*chosen, device], request.ticket)}
            if device not in tickets and not any(_delays(taken, other) for other in blocked):
                chosen.append(device)
            if len(chosen) == request.count:
                break
        if len(chosen) == request.count:
            starting[request.ticket] = chosen
            tickets.update(dict.fromkeys(chosen, request.ticket))
        else:
            blocked.append(request)
    return starting


def _delays(holders: Mapping[str, int], request: Request) -> bool:
    """Whether later jobs hold devices that a request needs."""
    held_by_later = sum(holders.get(device, 0) > request.ticket for device in request.pool)
    return held_by_later > len(request.pool) - request.count
