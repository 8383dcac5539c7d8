"""Uploading a merged checkpoint with the hub's client."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from portllm.cli import transplant
from portllm.cli.request import Request
from portllm.errors import InputError


class Recorder:
    """A stand-in for the hub's client."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012, shared on purpose

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append((name, options))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_all_files_of_the_checkpoint_are_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    monkeypatch.setattr(Recorder, "calls", [])
    transplant.push(tmp_path, "owner/ported")
    assert Recorder.calls == [
        ("owner/ported", {"exist_ok": True}),
        ("upload", {"repo_id": "owner/ported", "folder_path": tmp_path}),
    ]


def test_an_upload_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Recorder, name: str, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    monkeypatch.setattr(Recorder, "create_repo", refuse)
    with pytest.raises(InputError, match=r"owner/ported.*no route"):
        transplant.push(tmp_path, "owner/ported")


@pytest.mark.parametrize("outputs", [[], [Path("one"), Path("two")]])
def test_uploading_needs_one_checkpoint(outputs: list[Path]) -> None:
    request = Request(["p", "q"], "b", checkpoints=outputs, push_to_hub="owner/ported")
    with pytest.raises(InputError, match=r"--push-to-hub uploads one merged checkpoint"):
        request.check()
