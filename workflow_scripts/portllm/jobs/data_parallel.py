"""Score or train on several GPUs: one process per GPU, each with the whole model."""

import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from portllm.jobs import devices, torch_devices
from portllm.storage import manifests

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# The drivers of NVIDIA, AMD and WSL.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def visible_gpus() -> list[str]:
    """List the names of the GPUs that this process may use.

    torch takes seconds to import, so it is imported only if a GPU driver exists or the job holds a
    GPU.

    Raises:
        InputError: torch cannot use the GPUs that the job holds.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    has_driver = any(Path(driver).exists() for driver in _DRIVERS)
    if devices.HELD not in os.environ and (hidden or not has_driver):
        return []
    import torch

    torch_devices.check(single=False)
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def launched() -> int:
    """Return the number of processes if `launch` has started this one; else 0."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_first() -> bool:
    """Whether this is the process that writes the results."""
    return not launched() or os.environ["RANK"] == "0"


def launch(count: int) -> NoReturn:
    """Replace this process by a launcher of `count` copies; if one fails, the launcher ends all."""
    log.info("starting %d processes", count)
    # `accelerate launch` does the same, but takes seconds to import.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(sys.executable, [*launcher, "--nproc-per-node", str(count), *sys.argv])


def join() -> None:
    """Join the process group of this job; each process uses its own GPU."""
    import torch
    from accelerate import PartialState

    # A long timeout, because processes may wait for the first, or take different times. If a
    # process fails, the launcher ends the others.
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(weeks=52))


def decided_by_first(decide: Callable[[], Result]) -> Result:
    """Call a function in the first process only, and return its result in all of them."""
    if not launched():
        return decide()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([decide() if is_first() else None])[0]


def leave() -> dict[str, Any]:
    """Leave the process group; return the devices of all processes like `device_cost`."""
    cost = manifests.device_cost()
    if launched():
        from accelerate import PartialState
        from accelerate.utils import gather_object

        # Each process reports every device but only its own memory there.
        peaks = gather_object([cost["peak_device_bytes"]])
        cost["peak_device_bytes"] = [max(peak) for peak in zip(*peaks, strict=True)]
        PartialState().destroy_process_group()
    return cost
