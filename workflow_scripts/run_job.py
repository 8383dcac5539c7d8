"""Run a command on devices of this machine that no other job holds.

The command finds them in CUDA_VISIBLE_DEVICES. With 0 it sees none. Where there is no device, or a
scheduler has assigned them, it just runs.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from portllm.command_line import run
from portllm.errors import InputError
from portllm.jobs import devices, supervision

log = logging.getLogger("run_job")

GIVEN = dict(os.environ)
"""The environment as it was given; the command sets up its own."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [-h] [--mem-mb MB] N -- COMMAND [ARGUMENT …]"
    )
    parser.add_argument("wanted", type=int, metavar="N", help="number of devices")
    parser.add_argument("--mem-mb", type=int, metavar="MB", help="host memory the job asked for")
    words = sys.argv[1:]
    # Divided here: a `--` of the command's own is the command's.
    place = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:place])
    arguments.command = words[place + 1 :]
    if not arguments.command:
        parser.error("no command: write it after `--`")
    if arguments.wanted < 0:
        parser.error(f"N: found {arguments.wanted}, expected 0 or more")
    return arguments


def name_of(command: Sequence[str]) -> str:
    """What people call a command: the program, not its interpreter."""
    scripts = (word for word in command[:4] if word.endswith(".py"))
    return Path(next(scripts, command[0])).name


def assigned_any() -> bool:
    """Whether SLURM says that it has assigned devices to this job."""
    return any(GIVEN.get(f"SLURM_{name}") for name in ("JOB_GPUS", "STEP_GPUS", "GPUS"))


def assigned_by_slurm(wanted: int, found: Mapping[str, str]) -> bool:
    """Whether the devices that are seen are those that SLURM has assigned to this job.

    Raises InputError where it has assigned fewer than are wanted.
    """
    job = GIVEN.get("SLURM_JOB_ID")
    if job is None:
        return False
    if len(found) < wanted and (found or assigned_any()):
        raise InputError(
            f"SLURM job {job} sees {len(found)} devices ({', '.join(found.values()) or 'none'}), "
            f"but gpu={wanted}: check the partition and how the profile asks for devices"
        )
    return len(found) == wanted


def hold(
    wanted: int, job: str, engine: supervision.SnakemakeProcess, grace: float
) -> tuple[devices.Lease | None, dict[str, str]]:
    """Choose the command's devices: those held, and what the command's environment gets."""
    if not wanted and assigned_any():
        # Sites without --gpus: the profile asks by --gres, and tells the executor `gpu: 0`.
        log.info("devices are those that SLURM has assigned")
        return None, devices.untouched(GIVEN)
    found = devices.pool(GIVEN) if wanted else {}
    if not wanted:
        return None, devices.shown({})
    if assigned_by_slurm(wanted, found):
        log.info("devices that SLURM has assigned: %s", ", ".join(found.values()))
        return None, devices.shown(found)
    if not found and "SLURM_JOB_ID" in GIVEN:
        log.warning("SLURM has assigned no device, though gpu=%d: running without one", wanted)
    elif not found:
        log.info("there is no device to use: running without one")
    if not found:
        return None, devices.untouched(GIVEN)

    def pause() -> None:
        engine.check()
        time.sleep(devices.POLL_SECONDS)

    directory = devices.lease_directory(GIVEN)
    lease = devices.lease(wanted, found, directory, job=job, stop_seconds=grace, pause=pause)
    log.info("holding %s of %d devices", ", ".join(lease.devices.values()), len(found))
    return lease, lease.environment()


def why_ended(status: int, memory_kills: int, asked: str) -> str | None:
    """What ended a command that nobody has told to stop; None where it says so itself."""
    if status == -signal.SIGKILL:
        return f"was killed (signal 9), most likely out of memory{asked}"
    if status < 0:
        return f"was ended by signal {-status}"
    if status > 0 and memory_kills > 0:
        # Launchers of several processes end with a status of their own.
        return f"failed, and a process was killed for lack of memory meanwhile{asked}"
    return None


def main() -> None:
    arguments = parse_arguments()
    # A Ctrl-C while waiting ends it without a traceback.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    grace = supervision.grace_seconds(GIVEN)
    job = name_of(arguments.command)
    try:
        engine = supervision.SnakemakeProcess(GIVEN)
        lease, variables = hold(arguments.wanted, job, engine, grace)
    except supervision.SnakemakeGoneError:
        raise InputError(f"Snakemake is gone, so {job} is not started") from None
    hidden = (devices.POOL, devices.VISIBLE)
    environment = {name: value for name, value in GIVEN.items() if name not in hidden}
    kills = supervision.memory_kills()
    status, stopped = supervision.run(
        arguments.command,
        {**environment, **variables},
        engine=engine,
        grace=grace,
        keep_open=lease.files if lease else (),
        every_hour=lease.keep if lease else lambda: None,
    )
    if lease:
        lease.release()
    if not stopped:
        asked = "" if arguments.mem_mb is None else f"; it asked for mem_mb={arguments.mem_mb}"
        reason = why_ended(status, supervision.memory_kills() - kills, asked)
        if reason is not None:
            log.error("%s %s", job, reason)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    # Whether the command may reach a hub is the command's business.
    run(main, hub=True)
