"""Handle SLURM jobs of an earlier run whose Snakemake process was killed.

Snakemake would submit the same jobs again. So a run first looks for earlier jobs on its results,
which it recognises by their names.
"""

import hashlib
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from portllm import credentials
from portllm.errors import InputError

FIELDS = ("%i", "%T", "%M", "%j", "%k")
# Seconds between two queries: short for jobs that end soon, longer to spare the controller.
FIRST_PAUSE, LONGEST_PAUSE = 2, 60
# A query without an answer takes squeue ten seconds, so this is about two minutes: long enough for
# a restart of the controller.
ATTEMPTS = 10


@dataclass(frozen=True)
class SlurmJob:
    """A job that has not ended; `elapsed` is `[days-][hours:]min:sec`, as in squeue."""

    identifier: str
    state: str
    elapsed: str
    name: str
    comment: str

    @property
    def is_waiting(self) -> bool:
        """Whether it is pending, for the first time or requeued."""
        return self.state == "PENDING"

    @property
    def description(self) -> str:
        """Rule and wildcards, from the executor's comment, with job id and elapsed time."""
        return f"{self.comment.removeprefix('rule_')} (job {self.identifier}, {self.elapsed})"


def without_credentials(
    command_of: Callable[..., str], environment: Mapping[str, str]
) -> Callable[..., str]:
    """Make a function that returns sbatch commands return ones that hide credentials from sbatch.

    sbatch passes its environment on to the job. Jobs that need credentials run on the login node.
    """
    unset = [word for name in credentials.names(environment) for word in ("-u", name)]
    prefix = shlex.join(["env", *unset])
    return lambda *job, **more: f"{prefix} {command_of(*job, **more)}"


def job_prefix(prefix: str, results: Path) -> str:
    """Return the start of the names of all jobs on `results`; the executor appends a run id."""
    return "-".join(filter(None, [prefix, _mark(results)]))


def _mark(results: Path) -> str:
    return hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:8]


def parse(listing: str, results: Path) -> list[SlurmJob]:
    """Parse squeue's listing of `FIELDS`; return the jobs on `results`."""
    jobs = [SlurmJob(*line.split("|", len(FIELDS) - 1)) for line in listing.splitlines()]
    mark = _mark(results)
    return [job for job in jobs if mark in job.name.partition("_")[0].split("-")]


def _ask(command: list[str], say: Callable[[str], None], pause: Callable[[float], None]) -> str:
    """Run a SLURM command, retrying until the controller answers.

    Raises:
        InputError: the controller does not answer, or the command does not exist.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise InputError(f"{command[0]}: command not found; run on a login node") from None
        if done.returncode == 0:
            return done.stdout
        problem = " ".join(done.stderr.split())
        if attempt == 1:
            say(f"SLURM does not answer ({problem}); trying {ATTEMPTS} times")
        pause(FIRST_PAUSE)
    raise InputError(
        f"SLURM does not answer {command[0]} ({problem}); nothing is started, because jobs of an "
        "earlier run may still be running"
    )


def _described(jobs: Iterable[SlurmJob]) -> str:
    return ", ".join(job.description for job in jobs)


def finish_earlier_jobs(
    results: Path, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Wait until no job of an earlier run uses `results`. The caller holds the results' lock.

    Running jobs are awaited. Pending jobs are cancelled: the new run submits them again, and
    waiting for their turn could take days.

    Args:
        results: the results directory.
        say: prints a message to the user.
        pause: waits a number of seconds.

    Raises:
        InputError: SLURM does not answer.
    """
    listing = ["squeue", "--me", "--noheader", f"--format={'|'.join(FIELDS)}"]
    seconds, reported = FIRST_PAUSE, None
    while jobs := parse(_ask(listing, say, pause), results):
        waiting = [job for job in jobs if job.is_waiting]
        running = [job for job in jobs if not job.is_waiting]
        if waiting:
            say(f"Cancelling pending jobs of an earlier run: {_described(waiting)}")
            # A job that has started in the meantime is not cancelled but awaited.
            numbers = [job.identifier for job in waiting]
            _ask(["scancel", "--state=PENDING", *numbers], say, pause)
        identifiers = {job.identifier for job in running}
        if running and identifiers != reported:
            say(f"Waiting for running jobs of an earlier run: {_described(running)}")
            reported, seconds = identifiers, FIRST_PAUSE
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)
