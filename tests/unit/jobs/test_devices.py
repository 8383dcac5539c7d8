"""The devices of a machine, and the pool that jobs draw from."""

from pathlib import Path

import pytest
import run_job_cli
from run_job_cli import LISTED

from portllm.errors import InputError
from portllm.jobs import devices

lease_environment = run_job_cli.lease_environment
machine = run_job_cli.machine

DIVIDED = """GPU 0: NVIDIA A100 (UUID: GPU-aa)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100 (UUID: GPU-bb)
"""


def test_what_nvidia_smi_lists() -> None:
    assert devices.read_inventory(LISTED) == {"GPU-1f0a": "0", "GPU-1f7c": "1"}
    assert devices.read_inventory(DIVIDED) == {"MIG-1": "MIG-1", "MIG-2": "MIG-2", "GPU-bb": "1"}


def test_devices_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER_GPUS", tmp_path)
    monkeypatch.setenv("PATH", "")
    for address, uuid in (("0000:41:00.0", "GPU-bb"), ("0000:01:00.0", "GPU-aa")):
        information = tmp_path / address / "information"
        information.parent.mkdir()
        information.write_text(f"Model: \t NVIDIA A100\nGPU UUID: \t {uuid}\nIRQ: \t 0\n")
    assert list(devices.pool({}).items()) == [("GPU-aa", "GPU-aa"), ("GPU-bb", "GPU-bb")]
    information.write_text("GPU UUID: \t GPU-????????-????\n")
    assert devices.pool({}) == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GPU-1f0a": "0", "GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f7c,0"}, {"GPU-1f7c": "GPU-1f7c", "GPU-1f0a": "0"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f7"}, {"GPU-1f7c": "GPU-1f7"}),
        ({"CUDA_VISIBLE_DEVICES": "1,GPU-1f7c"}, {"GPU-1f7c": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, {"GPU-1f0a": "0"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {}),
        (
            {"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": "all"},
            {"GPU-1f0a": "0", "GPU-1f7c": "1"},
        ),
    ],
)
@pytest.mark.usefixtures("machine")
def test_one_name_for_each_device(given: dict[str, str], expected: dict[str, str]) -> None:
    assert devices.pool(given) == expected


@pytest.mark.usefixtures("machine")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no device 'GPU-1f0b'; nearest: GPU-1f0a"):
        devices.pool({"CUDA_VISIBLE_DEVICES": "GPU-1f0b"})
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES: .* no device '7'; known: 0, 1"):
        devices.pool({"CUDA_VISIBLE_DEVICES": "7"})


@pytest.mark.parametrize(
    ("given", "pool"),
    [
        ({}, "all"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        # A Snakemake inside another one's job, and one that a scheduler has started.
        ({"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": "0,1"}, "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "3", "PORTLLM_DEVICES": "0,1"}, "3"),
    ],
)
def test_devices_are_hidden_but_not_forgotten(given: dict[str, str], pool: str) -> None:
    assert devices.hidden(given) == {"CUDA_VISIBLE_DEVICES": "", "PORTLLM_DEVICES": pool}
    assert devices.hidden(devices.hidden(given)) == devices.hidden(given)
