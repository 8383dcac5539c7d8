"""Score on several GPUs: one process per GPU, each with the whole model."""

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from portllm.jobs import devices, torch_devices

log = logging.getLogger(__name__)

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
    log.info("scoring in %d processes", count)
    # `accelerate launch` does the same, but takes seconds to import.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(sys.executable, [*launcher, "--nproc-per-node", str(count), *sys.argv])
