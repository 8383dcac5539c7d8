"""Scoring on several GPUs: this program once for each of them, each with the whole model."""

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

log = logging.getLogger(__name__)

# NVIDIA's, AMD's and WSL's drivers.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use.

    torch takes seconds to import, so it is asked only where there is a driver.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if hidden or not any(Path(driver).exists() for driver in _DRIVERS):
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def launched() -> int:
    """How many processes this one is of, where `launch` has started it; else 0."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not launched() or os.environ["RANK"] == "0"


def launch(count: int) -> NoReturn:
    """Run this program again in `count` processes instead of going on; when one fails, all end."""
    log.info("scoring in %d processes", count)
    # What `accelerate launch` does, without the seconds that importing all of accelerate takes.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(sys.executable, [*launcher, "--nproc-per-node", str(count), *sys.argv])
