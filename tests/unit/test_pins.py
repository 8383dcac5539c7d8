"""The two ways to make an environment install the same pins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ENVIRONMENTS = Path(__file__).parents[2] / "envs"
NAMES = ("workflow", "train", "eval", "vllm")
UV = shutil.which("uv") or ENVIRONMENTS.parent / ".venvs" / "uv" / "bin" / "uv"
# The index's own torch for these platforms is built for CUDA.
CUDA = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")


def pins(name: str) -> list[str]:
    return (ENVIRONMENTS / f"{name}.txt").read_text().split()


@pytest.mark.parametrize("name", NAMES)
def test_conda_installs_the_pinned_file(name: str) -> None:
    definition = yaml.safe_load((ENVIRONMENTS / f"{name}.yaml").read_text())
    assert definition["dependencies"][-1]["pip"] == pins(name)
    assert "python=3.11" in definition["dependencies"]


@pytest.mark.parametrize("name", [*NAMES, "test", "uv"])
def test_everything_is_pinned_and_no_address_is_recorded(name: str) -> None:
    assert pins(name)
    for pin in pins(name):
        package, _, version = pin.partition("==")
        assert package
        assert version
        assert "://" not in pin


def test_torch_is_the_same_everywhere() -> None:
    shared = ("torch", "transformers", "peft")
    for package in shared:
        result = {
            pin
            for name in ("train", "eval")
            for pin in pins(name)
            if pin.startswith(f"{package}==")
        }
        assert len(result) == 1
    assert "torch==2.13.0" in pins("train")


def resolve(name: str, *options: str) -> None:
    """Resolve the pins of an environment without installing it; skip the test without an index."""
    if not Path(UV).exists():
        pytest.skip("uv is not installed")
    command = [UV, "pip", "compile", "--quiet", "--python-version", "3.11", *options]
    done = subprocess.run(
        [*command, ENVIRONMENTS / f"{name}.txt"], capture_output=True, text=True, check=False
    )
    if "Failed to fetch" in done.stderr or "Network connectivity" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", CUDA)
@pytest.mark.parametrize("name", NAMES)
def test_pins_resolve_with_cuda(name: str, platform: str) -> None:
    resolve(name, "--python-platform", platform)


@pytest.mark.skipif("PIP_FIND_LINKS" not in os.environ, reason="names no wheel of torch for CPUs")
def test_pins_of_vllm_resolve_without_cuda() -> None:
    # make.sh installs the other environments like this.
    resolve("vllm", "--find-links", os.environ["PIP_FIND_LINKS"])
