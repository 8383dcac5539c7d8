"""What environments say about the pins that they were built from."""

from pathlib import Path

import pytest

from portllm.storage import environments, manifests
from portllm.storage.environments import State
from portllm.storage.files import hash_file


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a complete environment."""
    pins = tmp_path / "envs" / "train.txt"
    pins.parent.mkdir()
    pins.write_text("torch==2.13.0\n")
    environment = tmp_path / ".venvs" / "train"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    (environment / "made_from").write_text(hash_file(pins) + "\n")
    return tmp_path


def test_state_follows_the_pins(checkout: Path) -> None:
    assert environments.state("train", checkout) is State.CURRENT
    (checkout / "envs" / "train.txt").touch()
    assert environments.state("train", checkout) is State.CURRENT
    (checkout / "envs" / "train.txt").write_text("torch==2.14.0\n")
    assert environments.state("train", checkout) is State.OUTDATED
    (checkout / ".venvs" / "train" / "bin" / "python").unlink()
    assert environments.state("train", checkout) is State.MISSING


def test_half_an_environment_is_missing(checkout: Path) -> None:
    (checkout / ".venvs" / "train" / "made_from").unlink()
    assert environments.state("train", checkout) is State.MISSING


def test_provenance_names_the_pins_and_whether_they_are_current(checkout: Path) -> None:
    environment, pins = checkout / ".venvs" / "train", checkout / "envs" / "train.txt"
    digest = hash_file(pins)[:12]
    known = {"name": "train", "pins": digest}
    assert environments.provenance(environment, checkout) == {**known, "current": True}
    pins.write_text("torch==2.14.0\n")
    assert environments.provenance(environment, checkout) == {**known, "current": False}


def test_an_environment_of_another_kind_has_no_provenance(tmp_path: Path) -> None:
    assert environments.provenance(tmp_path, tmp_path) is None


def test_manifests_record_the_environment_and_keep_their_content_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {"name": "train", "pins": "0" * 12, "current": False}
    created = []
    for environment in (None, recorded):
        monkeypatch.setattr(environments, "provenance", lambda value=environment: value)
        cost = manifests.Meter().read()
        created.append(
            manifests.describe(
                stage="s", parameters={}, inputs={}, content={"file": "hash"}, cost=cost
            )
        )
    assert [manifest["environment"] for manifest in created] == [None, recorded]
    assert created[0]["content_hash"] == created[1]["content_hash"]
