"""Jobs that an earlier run left in SLURM's hands, when the process that submitted them died.

Snakemake would submit them a second time. Here a run finds them before it starts its own, by the
name that jobs which work on its results bear.
"""

import hashlib
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from portllm.errors import InputError

FIELDS = ("%i", "%T", "%M", "%j", "%k")
# Seconds between two questions: quick for jobs that are about to end, kind to the controller else.
FIRST_PAUSE, LONGEST_PAUSE = 2, 60
# Each unanswered question takes squeue some ten seconds: about two minutes, a controller's restart.
ATTEMPTS = 10


@dataclass(frozen=True)
class SlurmJob:
    """A job that has not ended. `elapsed` is as squeue writes it, `[days-][hours:]min:sec`."""

    identifier: str
    state: str
    elapsed: str
    name: str
    comment: str

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun, or waits to begin again."""
        return self.state == "PENDING"

    @property
    def description(self) -> str:
        """The rule and the wildcards, as the executor notes them, and the job's number."""
        return f"{self.comment.removeprefix('rule_')} (job {self.identifier}, {self.elapsed})"


def job_prefix(prefix: str, results: Path) -> str:
    """What the names of all jobs that work on `results` begin with.

    The executor puts the run's own number behind it.
    """
    return "-".join(filter(None, [prefix, _mark(results)]))


def _mark(results: Path) -> str:
    return hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:8]


def parse(listing: str, results: Path) -> list[SlurmJob]:
    """Pick the jobs that work on `results` from what squeue lists in `FIELDS`."""
    jobs = [SlurmJob(*line.split("|", len(FIELDS) - 1)) for line in listing.splitlines()]
    mark = _mark(results)
    return [job for job in jobs if mark in job.name.partition("_")[0].split("-")]


def _ask(command: list[str], say: Callable[[str], None], pause: Callable[[float], None]) -> str:
    """Run a SLURM command until the controller answers it.

    Raises InputError where it does not, or the command is not there.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise InputError(f"no {command[0]} here: is this a login node?") from None
        if done.returncode == 0:
            return done.stdout
        problem = " ".join(done.stderr.split())
        if attempt == 1:
            say(f"SLURM does not answer ({problem}); asking again, {ATTEMPTS} times in all")
        pause(FIRST_PAUSE)
    raise InputError(
        f"SLURM does not answer {command[0]} ({problem}), so nobody knows whether jobs of an"
        " earlier run still run: nothing was started"
    )


def _described(jobs: Iterable[SlurmJob]) -> str:
    return ", ".join(job.description for job in jobs)


def finish_earlier_jobs(
    results: Path, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Return when no job of an earlier run works on `results`. No other run may be alive on them.

    Jobs that run are waited for. Jobs that wait are cancelled: they have done nothing yet, the new
    run submits them at once and then watches them, and waiting for their turn could take days.

    Raises InputError when SLURM does not answer.
    """
    listing = ["squeue", "--me", "--noheader", f"--format={'|'.join(FIELDS)}"]
    seconds, said = FIRST_PAUSE, None
    while jobs := parse(_ask(listing, say, pause), results):
        waiting = [job for job in jobs if job.is_waiting]
        running = [job for job in jobs if not job.is_waiting]
        if waiting:
            say(f"Cancelling what an earlier run left in the queue: {_described(waiting)}")
            # One that has begun meanwhile is let alone, and waited for.
            numbers = [job.identifier for job in waiting]
            _ask(["scancel", "--state=PENDING", *numbers], say, pause)
        left = {job.identifier for job in running}
        if running and left != said:
            say(f"Waiting for what an earlier run left running: {_described(running)}")
            said, seconds = left, FIRST_PAUSE
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)
