"""Whether torch can use the GPUs that a job holds.

torch falls back to the CPU without an error if it cannot use a GPU, for example because the driver
is too old.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.jobs.devices import HELD

FALLBACK = "PORTLLM_CPU_FALLBACK"
"""Variable: if set, a job whose GPUs torch cannot use computes on the CPU."""
DRIVER = Path("/proc/driver/nvidia/version")
MINIMUM_DRIVERS = {"12": 525, "13": 580}
"""Major version of CUDA → NVIDIA driver that it needs (CUDA release notes, minor version
compatibility)."""


def check(*, single: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Check that torch sees the GPUs that this job holds, and no others.

    Args:
        single: the stage computes on one GPU, unless a launcher has started several processes.
        environment: variables of this process.

    Raises:
        InputError: torch cannot use a GPU that the job holds, or sees another number of GPUs.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    held = environment.get(HELD, "")
    if held.isdigit() and visible < int(held) and not environment.get(FALLBACK):
        reasons = [str(warning.message) for warning in caught]
        raise InputError(_explain(int(held), visible, torch, reasons))
    if single and visible > 1 and int(environment.get("WORLD_SIZE", "1")) == 1:
        raise InputError(
            f"torch sees {visible} GPUs, but this stage uses one. Set CUDA_VISIBLE_DEVICES to the "
            "GPUs that the run may use, for example 0,1: each job gets its own of them"
        )


def _explain(held: int, visible: int, torch: Any, reasons: list[str]) -> str:
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU only"
    driver = _driver()
    found = f"; NVIDIA driver {driver}" if driver else ""
    minimum = MINIMUM_DRIVERS.get((cuda or "").partition(".")[0])
    needs = f" CUDA {cuda} needs driver {minimum} or later." if minimum else ""
    reason = f": {reasons[0]}" if reasons else ""
    return (
        f"this job holds {held} GPUs, but torch can use {visible}{reason} "
        f"(torch {torch.__version__} for {build}{found}).{needs} Update the driver, or name a "
        "torch build that fits it in envs/train.in and envs/eval.in and run `make pins envs`, or "
        "set `gpu: 0` under the study's `resources:` to compute on the CPU"
    )


def _driver() -> str | None:
    try:
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text())
    except OSError:
        return None
    return match[0] if match else None
