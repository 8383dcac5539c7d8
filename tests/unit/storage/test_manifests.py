"""What a manifest records of the code that wrote it."""

import shutil
import subprocess
from pathlib import Path

import pytest

import portllm
from portllm.storage import manifests

PACKAGE = Path(portllm.__file__).parent


def commit_all(directory: Path) -> str:
    """Make a repository of a directory and return the abbreviation of its first commit."""
    git = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    show = [*git, "rev-parse", "--short", "HEAD"]
    return subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_the_projects_own_checkout_is_recorded(tmp_path: Path) -> None:
    package = tmp_path / "workflow_scripts" / "portllm"
    shutil.copytree(PACKAGE / "storage", package)
    commit = commit_all(tmp_path)
    assert manifests.code_version(package) == f"{portllm.__version__} ({commit})"
    (package / "files.py").write_text("changed")
    assert manifests.code_version(package) == f"{portllm.__version__} ({commit}+)"


@pytest.mark.parametrize("place", ["venv/lib/python3.11/site-packages/portllm", "portllm"])
def test_the_commit_of_another_projects_repository_is_not(tmp_path: Path, place: str) -> None:
    package = tmp_path / place
    shutil.copytree(PACKAGE / "storage", package)
    commit_all(tmp_path)
    assert manifests.code_version(package) == portllm.__version__


def test_without_git_the_version_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifests.code_version() == portllm.__version__
