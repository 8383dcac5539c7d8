"""Run a command on GPUs of this machine that no other job holds.

CUDA_VISIBLE_DEVICES names them to the command. With N = 0 the command sees no GPU. On a machine
without GPUs, and where SLURM has assigned them, the command simply runs. The command's environment
holds no credentials, such as HF_TOKEN, without --credentials.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from portllm import credentials
from portllm.command_line import run
from portllm.errors import InputError
from portllm.jobs import devices, leases, supervision
from portllm.storage import temporary

log = logging.getLogger("run_job")

GIVEN = dict(os.environ)
"""The environment before portllm.command_line changes it."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [-h] [--mem-mb MB] [--credentials] N -- COMMAND …"
    )
    parser.add_argument("count", type=int, metavar="N", help="number of GPUs")
    parser.add_argument("--mem-mb", type=int, metavar="MB", help="host memory the job requested")
    parser.add_argument(
        "--credentials", action="store_true", help="leave credentials in the command's environment"
    )
    words = sys.argv[1:]
    # Split here, because argparse would also take a later `--` out of the command.
    split = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:split])
    arguments.command = words[split + 1 :]
    if not arguments.command:
        parser.error("no command; write it after `--`")
    if arguments.count < 0:
        parser.error(f"N: found {arguments.count}, expected 0 or more")
    return arguments


def name_of(command: Sequence[str]) -> str:
    """Return the name of a command's program, not of its interpreter."""
    scripts = (word for word in command[:4] if word.endswith(".py"))
    return Path(next(scripts, command[0])).name


def has_slurm_devices() -> bool:
    """Whether SLURM has assigned devices to this job."""
    return any(GIVEN.get(f"SLURM_{name}") for name in ("JOB_GPUS", "STEP_GPUS", "GPUS"))


def are_assigned_by_slurm(count: int, pool: Mapping[str, str]) -> bool:
    """Whether the visible devices are those that SLURM has assigned to this job.

    Raises:
        InputError: SLURM has assigned fewer than `count`.
    """
    job = GIVEN.get("SLURM_JOB_ID")
    if job is None:
        return False
    if len(pool) < count and (pool or has_slurm_devices()):
        raise InputError(
            f"SLURM job {job} sees {len(pool)} devices ({', '.join(pool.values()) or 'none'}), "
            f"but gpu={count}: check the partition and how the profile requests devices"
        )
    return len(pool) == count


def lease_devices(
    count: int, job: str, snakemake: supervision.SnakemakeProcess, grace: float
) -> tuple[leases.Lease | None, dict[str, str]]:
    """Choose the command's devices.

    Returns:
        The lease, None if no device had to be leased, and the variables that show the devices.
    """
    if not count and has_slurm_devices():
        # Sites without --gpus: the profile requests devices by --gres and sets `gpu: 0`.
        log.info("using the devices that SLURM has assigned")
        return None, devices.original(GIVEN)
    if not count:
        return None, devices.shown({})
    pool = devices.pool(GIVEN)
    if are_assigned_by_slurm(count, pool):
        log.info("using the devices that SLURM has assigned: %s", ", ".join(pool.values()))
        return None, devices.shown(pool)
    if not pool and "SLURM_JOB_ID" in GIVEN:
        log.warning("gpu=%d, but SLURM has assigned no device; running on the CPU", count)
    elif not pool:
        log.info("no GPU on this machine; running on the CPU")
    if not pool:
        return None, devices.original(GIVEN)

    def pause() -> None:
        snakemake.check()
        time.sleep(leases.POLL_SECONDS)

    scope = leases.lease_scope(GIVEN)
    lease = leases.lease(count, pool, scope, job=job, stop_seconds=grace, pause=pause)
    log.info("holding device %s (%d in the pool)", ", ".join(lease.devices.values()), len(pool))
    return lease, lease.environment()


def own_temporary_directory(stack: contextlib.ExitStack) -> tuple[dict[str, str], list[int]]:
    """Create a temporary directory for the command, which is removed even if the command is killed.

    Args:
        stack: removes the directory when it is closed.

    Returns:
        The variables that name the directory, and the descriptors that the command inherits: they
        protect the directory while the command runs on without this process.
    """
    try:
        parent = Path(tempfile.gettempdir())
        temporary.sweep(parent, temporary.JOB, temporary.SNAKEMAKE)
        directory, lock = stack.enter_context(temporary.owned_directory(parent, temporary.JOB))
    except OSError as error:
        log.warning("the job has no temporary directory of its own: %s", error.strerror)
        return {}, []
    variables = dict.fromkeys(("TMPDIR", "TEMPDIR", "TEMP", "TMP"), str(directory))
    # torch keeps compiled kernels below TMPDIR, for later jobs too.
    kernels = f"{parent}/torchinductor_{GIVEN.get('USER', os.getuid())}"
    variables["TORCHINDUCTOR_CACHE_DIR"] = GIVEN.get("TORCHINDUCTOR_CACHE_DIR", kernels)
    return variables, [] if lock is None else [lock]


def failure_reason(status: int, memory_kills: int, memory_request: str) -> str | None:
    """Explain how a command ended that was not told to stop.

    Args:
        status: its exit status, −n if signal n ended it.
        memory_kills: processes that the kernel killed for lack of memory while it ran.
        memory_request: end of the message, the memory that the job requested.

    Returns:
        What happened, or None if the command's own output explains it.
    """
    if status == -signal.SIGKILL:
        return f"was killed (signal 9), most likely out of memory{memory_request}"
    if status < 0:
        return f"was ended by signal {-status}"
    if status > 0 and memory_kills > 0:
        # A launcher of several processes exits with its own status when one of them is killed.
        return f"failed, and a process was killed for lack of memory meanwhile{memory_request}"
    return None


def main() -> None:
    arguments = parse_arguments()
    # Ctrl-C while waiting for a device ends the program without a traceback.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    grace = supervision.grace_seconds(GIVEN)
    job = name_of(arguments.command)
    try:
        snakemake = supervision.SnakemakeProcess(GIVEN)
        lease, variables = lease_devices(arguments.count, job, snakemake, grace)
    except supervision.SnakemakeGoneError:
        raise InputError(f"Snakemake has ended, so {job} was not started") from None
    hidden = (devices.POOL, devices.VISIBLE, devices.HELD)
    environment = {name: value for name, value in GIVEN.items() if name not in hidden}
    if not arguments.credentials:
        environment = credentials.without(environment)
    kills = supervision.memory_kills()
    with contextlib.ExitStack() as stack:
        temporary_variables, descriptors = own_temporary_directory(stack)
        status, was_told_to_stop = supervision.run(
            arguments.command,
            {**environment, **variables, **temporary_variables},
            snakemake=snakemake,
            grace=grace,
            keep_open=[*(lease.files if lease else ()), *descriptors],
        )
    if lease:
        lease.release()
    if not was_told_to_stop:
        request = "" if arguments.mem_mb is None else f"; it requested mem_mb={arguments.mem_mb}"
        reason = failure_reason(status, supervision.memory_kills() - kills, request)
        if reason is not None:
            log.error("%s %s", job, reason)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    # Each command decides whether it may use the Hub.
    run(main, hub=True)
