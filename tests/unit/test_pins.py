"""The two ways to make an environment install the same pins."""

from pathlib import Path

import pytest
import yaml

ENVIRONMENTS = Path(__file__).parents[2] / "envs"
NAMES = ("workflow", "train", "eval", "vllm")


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
