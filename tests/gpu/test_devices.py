"""Driver, compiler and leases on a real device."""

import json
import os
import subprocess
import time

import pytest
from conftest import PROJECT, wait_for
from gpu.plugin import ON_CPU, Record
from gpu.random_models import driver_version
from run_job_cli import first_line, lease_environment, machine, started  # noqa: F401

from portllm.jobs import devices

pytestmark = pytest.mark.gpu

POOL = {} if ON_CPU else devices.pool(os.environ)
COMPUTE = """
import importlib.metadata, json, torch
left = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
error = (left @ left).float() - left.float() @ left.float()
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "devices": torch.cuda.device_count(),
    "capability": torch.cuda.get_device_capability(),
    "error": float(error.abs().max()),
}))
"""
COMPILE = """
import torch
fused = torch.compile(lambda x: torch.nn.functional.gelu(x) * x)
values = torch.linspace(-3, 3, 1000, device="cuda")
assert torch.allclose(fused(values), torch.nn.functional.gelu(values) * values, atol=1e-5)
"""
# Prints the devices that CUDA itself shows, where there is one.
HOLD = """
import os, time
names = os.environ["CUDA_VISIBLE_DEVICES"]
if not {on_cpu}:
    import torch
    names = ",".join(
        f"GPU-{{torch.cuda.get_device_properties(index).uuid}}"
        for index in range(torch.cuda.device_count())
    )
print(names, flush=True)
time.sleep(600)
"""


def in_environment(name: str, code: str) -> str:
    python = PROJECT / ".venvs" / name / "bin" / "python"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.gpu(on_cpu=False)
@pytest.mark.parametrize("environment", ["train", "eval"])
def test_torch_of_each_environment_computes_with_this_driver(
    environment: str, record: Record
) -> None:
    answer = json.loads(in_environment(environment, COMPUTE))
    assert answer["devices"] > 0
    assert answer["error"] < 1.0
    record(**answer, driver=driver_version())


@pytest.mark.gpu(on_cpu=False)
def test_the_compiler_builds_a_kernel() -> None:
    in_environment("train", COMPILE)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> dict[str, str]:
    """One device: its index, UUID and a prefix of its UUID; on a CPU, of an invented nvidia-smi."""
    if ON_CPU:
        request.getfixturevalue("machine")
    inventory = devices.inventory()
    uuid = next(iter(POOL), next(iter(inventory)))
    return {"index": inventory[uuid], "uuid": uuid, "prefix": uuid[:-1]}


@pytest.mark.parametrize("name", ["index", "uuid", "prefix"])
def test_a_killed_job_frees_its_device(name: str, device: dict[str, str], record: Record) -> None:
    hold = (str(PROJECT / ".venvs/train/bin/python"), "-c", HOLD.format(on_cpu=ON_CPU))
    shown = device[name] if ON_CPU else device["uuid"]
    with started(1, *hold, CUDA_VISIBLE_DEVICES=device[name]) as first:
        assert first_line(first) == shown
        with started(1, *hold, CUDA_VISIBLE_DEVICES=device["uuid"]) as second:
            assert second.stderr is not None
            # Whatever its name, it is one device, and the second job waits for it.
            assert "waiting for 1 of 1 devices" in second.stderr.readline()
            killed = time.monotonic()
            first.kill()
            assert first_line(second) == device["uuid"]
            record(seconds_until_free=round(time.monotonic() - killed, 2))
            second.kill()
            wait_for(lambda: second.poll() is not None)
