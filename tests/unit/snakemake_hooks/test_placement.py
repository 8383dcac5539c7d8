"""The path from a working directory to the workflow's."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from portllm.snakemake_hooks import placement


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "study")


def test_the_checkout_itself_needs_no_link() -> None:
    assert placement.stable_path(Path.cwd()) == Path()
    assert not placement.LINK.is_symlink()


def test_the_path_stays_when_the_checkout_moves(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    first = placement.stable_path(checkout)
    assert first.resolve() == checkout
    moved = checkout.rename(tmp_path / "moved")
    assert placement.stable_path(moved) == first
    assert first.resolve() == moved
    assert list(first.parent.iterdir()) == [first]


def test_a_directory_that_cannot_be_written_to_gets_a_relative_path(tmp_path: Path) -> None:
    Path(".snakemake").touch()
    assert placement.stable_path(tmp_path / "checkout") == Path("../checkout")


def test_each_key_is_first_once_for_a_workflow() -> None:
    workflow = SimpleNamespace()
    calls = [placement.is_first(workflow, key) for key in ("a", "a", "b")]
    assert calls == [True, False, True]
    assert placement.is_first(SimpleNamespace(), "a")
