"""`pip install .`: the package and its command, outside of the checkout."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import PROJECT

import portllm

UV = PROJECT / ".venvs" / "uv" / "bin" / "uv"
PYTHON = PROJECT / ".venvs" / "eval" / "bin" / "python"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without its dependencies, in a directory of its own."""
    target = tmp_path_factory.mktemp("installed") / "site-packages"
    done = subprocess.run(
        [UV, "pip", "install", "--no-deps", "--python", PYTHON, "--target", target, PROJECT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Failed to resolve requirements from `build-system.requires`" in done.stderr:
        pytest.skip("needs hatchling, from a package index or a local directory")
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the console script, from a directory that is not a checkout."""
    return subprocess.run(
        [installed / "bin" / "portllm", *arguments],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_console_script_runs(installed: Path) -> None:
    done = run(installed, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"portllm {portllm.__version__}\n"


def test_only_the_library_is_installed(installed: Path) -> None:
    (metadata,) = installed.glob("portllm-*.dist-info")
    assert metadata.name == f"portllm-{portllm.__version__}.dist-info"
    names = {path.name for path in installed.iterdir() if not path.name.startswith(".")}
    assert names == {"bin", "portllm", metadata.name}
    source = PROJECT / "workflow_scripts" / "portllm"
    modules, expected = (
        {str(path.relative_to(place)) for path in place.rglob("*.py")}
        for place in (installed / "portllm", source)
    )
    assert modules == expected


def test_without_a_workflow_the_plan_says_so(installed: Path) -> None:
    done = run(installed, "plan")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: no PortLLM workflow in {installed} or above; run this command in a checkout of "
        "the workflow\n"
    )
