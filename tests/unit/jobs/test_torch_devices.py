"""Jobs that hold a GPU that torch cannot use, or see more GPUs than they use."""

import sys
from pathlib import Path

import pytest
import run_job_cli
from conftest import PROJECT
from run_job_cli import run

from portllm.errors import InputError
from portllm.training import recipe_defaults

lease_environment = run_job_cli.lease_environment

TORCH = """
import types, warnings
__version__ = "2.9.1"
version = types.SimpleNamespace(cuda="13.0", hip=None)
class cuda:
    def is_available():
        if not {count}:
            warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old")
        return {count} > 0
    def device_count():
        return {count}
"""
PROGRAMS = {
    "train_patch.py": ("model", "task", "work", "output"),
    "pretrain.py": ("corpus", "output"),
    "measure_loss_slice.py": ("version", "carried", "native", "task", "lm-eval", "output"),
    "score.py": ("version", "task", "lm-eval", "results", "samples"),
}


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch that sees as many GPUs as is written into it."""
    package = tmp_path / "stub" / "torch.py"
    package.parent.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package


def refused(program: str, directory: Path, **variables: str) -> str:
    """Run a program as a job of one device; return its error."""
    (directory / "config.json").write_text("{}")
    script = str(PROJECT / "workflow_scripts" / program)
    options = [word for name in PROGRAMS[program] for word in (f"--{name}", str(directory))]
    done = run(1, sys.executable, script, *options, **variables)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_gpu_that_torch_cannot_use(torch: Path, tmp_path: Path, program: str) -> None:
    torch.write_text(TORCH.format(count=0))
    line = refused(program, tmp_path, CUDA_VISIBLE_DEVICES="a")
    assert "error: " in line
    assert "this job holds 1 GPUs, but torch can use 0" in line
    assert "driver on your system is too old (torch 2.9.1 for CUDA 13.0" in line
    assert "CUDA 13.0 needs driver 580 or later. Update the driver, or name a torch build" in line


def test_a_gpu_that_axolotl_cannot_use(torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.write_text(TORCH.format(count=0))
    monkeypatch.syspath_prepend(torch.parent)
    monkeypatch.setenv("PORTLLM_GPUS", "1")
    with pytest.raises(InputError, match=r"torch can use 0: .* too old \(torch 2.9.1 for CUDA"):
        recipe_defaults.current_device()


@pytest.mark.parametrize("program", ["train_patch.py", "pretrain.py", "measure_loss_slice.py"])
def test_several_gpus_where_nothing_lists_them(torch: Path, tmp_path: Path, program: str) -> None:
    torch.write_text(TORCH.format(count=4))
    line = refused(program, tmp_path)
    assert "torch sees 4 GPUs, but this stage uses one. Set CUDA_VISIBLE_DEVICES" in line
