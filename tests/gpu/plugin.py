"""Pytest plugin of the tests that need a GPU: when they are skipped, where measurements go.

Imports nothing heavy, because every test run loads it.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from portllm.jobs import devices
from portllm.storage import files, manifests

ON_CPU = os.environ.get("PORTLLM_GPU_TESTS_ON_CPU") == "1"
"""Run what a CPU can run, on tiny models, to test these tests."""
RESULTS = Path(
    os.environ.get("PORTLLM_GPU_RESULTS", Path(__file__).parents[2] / "benchmarks" / "gpu")
)

Record = Callable[..., None]
_measurements: dict[str, dict[str, Any]] = {}
_outcomes: dict[str, dict[str, Any]] = {}


@cache
def _missing_device() -> str | None:
    """Return why there is no device. One that is listed but unusable must fail the tests."""
    import torch

    if devices.inventory() or torch.cuda.is_available():
        return None
    return f"no GPU: nvidia-smi lists none and torch {torch.__version__} sees none"


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    if ON_CPU and not marker.kwargs.get("on_cpu", True):
        pytest.skip("has no equivalent on a CPU")
    if not ON_CPU and (reason := _missing_device()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that is removed afterwards, because pytest would keep gigabytes of weights."""
    directory = tmp_path_factory.mktemp("gpu")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """A function that adds measurements to the results file, under the name of the test."""

    def add(**values: Any) -> None:
        assert json.dumps(values)  # the file is written at the end
        _measurements.setdefault(request.node.name, {}).update(values)

    return add


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/gpu/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        name = report.nodeid.rpartition("::")[2]
        _outcomes[name] = {"outcome": report.outcome, "seconds": round(report.duration, 1)}


def pytest_sessionfinish() -> None:
    """Write all measurements with the device and versions, also after failures."""
    # On a CPU only where a directory is named: tiny models measure nothing.
    if not _measurements or (ON_CPU and "PORTLLM_GPU_RESULTS" not in os.environ):
        return
    from gpu.random_models import device_description

    described = device_description()
    document = {
        **described,
        "date": time.strftime("%Y-%m-%d"),
        "code": manifests.code_version(),
        "outcomes": _outcomes,
        "measurements": _measurements,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', described['device'].lower())}.json"
    files.write_json(file, document)
    sys.stderr.write(f"\nmeasurements: {file}\n")
