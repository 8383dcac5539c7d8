"""The GPUs of this machine, and the environment variables that show or hide them.

Snakemake hides all devices from its jobs. `run_job.py` leases some for a job and shows only these.
"""

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from portllm.errors import InputError, nearest

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
POOL = "PORTLLM_DEVICES"
"""Environment variable: the devices that jobs may lease while CUDA_VISIBLE_DEVICES hides them."""
HELD = "PORTLLM_GPUS"
"""Environment variable of a command: number of devices that it holds, if any."""
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
ALL = "all"


def hidden(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that hide all devices from jobs and keep the pool that leases draw from.

    The devices may be hidden already, by a parent Snakemake. CUDA_VISIBLE_DEVICES, if a scheduler
    has set it since, takes precedence over the parent's pool.
    """
    visible = environment.get(VISIBLE)
    default = ALL if visible is None else visible
    return {VISIBLE: "", POOL: visible or environment.get(POOL, default)}


def original(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as they were before `hidden`."""
    pool_names = environment.get(POOL, environment.get(VISIBLE, ALL))
    return {} if pool_names == ALL else {VISIBLE: pool_names}


def inventory() -> dict[str, str]:
    """List the devices of this machine in the order of nvidia-smi, MIG parts in place of a device.

    Returns:
        UUID → the name that CUDA_VISIBLE_DEVICES takes. Empty if none are
        found or nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None:
        # Containers often lack it.
        return listed_by_driver(DRIVER_GPUS)
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        output = " ".join((listing.stdout + listing.stderr).split())
        log.warning("nvidia-smi failed, so no device is used: %s", output)
        return {}
    return read_inventory(listing.stdout)


def listed_by_driver(directory: Path) -> dict[str, str]:
    """List the devices that NVIDIA's kernel driver knows, in the order of their PCI addresses.

    A device that was not used since boot may have no UUID yet. Then none is listed.
    """
    devices: dict[str, str] = {}
    for path in sorted(directory.glob("*/information")):
        match = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)$", path.read_text(), re.MULTILINE)
        if match is None:
            return {}
        devices[match[1]] = match[1]
    return devices


def read_inventory(listing: str) -> dict[str, str]:
    """Parse the output of `nvidia-smi -L`."""
    devices: dict[str, str] = {}
    parent_uuid = ""
    for line in listing.splitlines():
        if match := re.match(r"GPU (\d+): .*\(UUID: ([^)]+)\)", line):
            parent_uuid = match[2]
            devices[parent_uuid] = match[1]
        elif match := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line):
            # With MIG, CUDA can use the parts of a device but not the device itself.
            devices.pop(parent_uuid, None)
            devices[match[1]] = match[1]
    return devices


def least_memory() -> int | None:
    """Return the memory in bytes of this machine's smallest GPU; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    mebibytes = [int(line) for line in answer.stdout.split() if line.isdecimal()]
    return min(mebibytes) * 2**20 if answer.returncode == 0 and mebibytes else None


def _uuid(name: str, known: Mapping[str, str]) -> str:
    """Return the UUID of a device that is named by its index, UUID or a prefix of its UUID."""
    if not known or name in known:
        return name
    for uuid, index in known.items():
        if name == index:
            return uuid
    matches = [uuid for uuid in known if not name.isdigit() and uuid.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    names = [*known.values(), *known]
    raise InputError(f"{VISIBLE}: this machine has no device {name!r}; {nearest(name, names)}")


def pool(environment: Mapping[str, str]) -> dict[str, str]:
    """List the devices that jobs may use: those in CUDA_VISIBLE_DEVICES, by default all.

    Returns:
        UUID → the name that CUDA_VISIBLE_DEVICES takes. Empty on a machine without devices.

    Raises:
        InputError: a device is named that this machine does not have.
    """
    pool_names = environment.get(POOL, environment.get(VISIBLE, ALL))
    if pool_names == ALL:
        return inventory()
    names = []
    for name in map(str.strip, pool_names.split(",")):
        # As CUDA does: ignore everything from the first invalid name on.
        if name in ("", "-1", "NoDevFiles"):
            break
        names.append(name)
    known = inventory() if names else {}
    devices: dict[str, str] = {}
    for name in names:
        devices.setdefault(_uuid(name, known), name)
    return devices


def shown(devices: Mapping[str, str]) -> dict[str, str]:
    """Return variables with which a command sees exactly these devices, in this order."""
    variables = {VISIBLE: ",".join(devices.values())}
    if devices:
        variables[HELD] = str(len(devices))
    if any(name.isdigit() and name != uuid for uuid, name in devices.items()):
        # By default CUDA numbers the fastest device 0. nvidia-smi numbers by PCI bus.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables
