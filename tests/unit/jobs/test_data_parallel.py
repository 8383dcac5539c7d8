"""One process per GPU, and the cache of a job's cells; no GPU or model is needed."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

import score as program
from portllm.jobs import data_parallel
from portllm.scoring import cache, hf
from portllm.storage import files, manifests


def request(index: int) -> SimpleNamespace:
    """A request of lm-eval for items with two choices each."""
    return SimpleNamespace(doc_id=index // 2, index=index)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_processes_share_all_requests_and_keep_items_together(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    requests = [request(index) for index in range(6)]
    shares: list[list[int]] = []
    gathered: list[tuple[int, str]] = []

    def answer(share: list[Any]) -> list[str]:
        shares.append([request.index for request in share])
        return [f"answer {request.index}" for request in share]

    # The ranks run one after the other, so only the last one gathers the answers of all.
    monkeypatch.setattr(hf, "gather_object", lambda share: gathered.extend(share) or gathered)
    for rank in range(count):
        state = SimpleNamespace(num_processes=count, process_index=rank)
        answers = hf.shared(requests, answer, state)
    assert answers == [f"answer {index}" for index in range(6)]
    # A process without a share does not call its model.
    assert len(shares) == min(count, 3)
    assert all(index ^ 1 in share for share in shares for index in share)


@pytest.mark.parametrize(("gpus", "expected"), [(0, None), (4, {"": 3})])
def test_a_version_is_loaded_straight_to_the_gpu_of_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, expected: dict[str, int] | None
) -> None:
    model = tiny.save_model(tmp_path / "model")
    load = hf.AutoModelForCausalLM.from_pretrained
    asked: list[Any] = []

    def load_on_cpu(directory: Path, *, device_map: Any, **options: Any) -> Any:
        asked.append(device_map)
        return load(directory, **options)

    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", load_on_cpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.current_device", lambda: gpus - 1)
    hf.load_version(model, "float32")
    assert asked == [expected]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command line of the scoring program."""
    task, version = tmp_path / "task", tmp_path / "version"
    for directory in (task, version):
        directory.mkdir()
        (directory / "file").touch()
    (version / "config.json").write_text("{}")
    words = ["score.py", "--version", str(version), "--task", str(task), "--lm-eval", "boolq"]
    return [*words, "--un-patched", "--results", "r.json", "--samples", "r.jsonl", "--gpus"]


def test_the_program_is_started_once_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(data_parallel, "visible_gpus", lambda: ["H200", "H200", "H200"])
    started: list[list[str]] = []

    def replace_program(path: str, words: list[str]) -> None:
        started.append(words)
        raise SystemExit

    monkeypatch.setattr(os, "execv", replace_program)
    for gpus in ("2", "8"):
        monkeypatch.setattr(sys, "argv", [*arguments, gpus])
        with pytest.raises(SystemExit):
            program.main()
    assert [words[-len(arguments) - 2 :][0] for words in started] == ["2", "3"]
    for words, gpus in zip(started, ("2", "8"), strict=True):
        assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
        assert words[-len(arguments) - 1 :] == [*arguments, gpus]


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_parallel.is_first()
    # Some clusters set these variables for every job; without the launcher they are ignored.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert data_parallel.is_first()
    assert data_parallel.launched() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not data_parallel.is_first()
    assert data_parallel.launched() == 2
    monkeypatch.setenv("RANK", "0")
    assert data_parallel.is_first()


def test_torch_is_imported_only_if_a_driver_exists_and_gpus_are_visible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "driver"
    monkeypatch.setattr(data_parallel, "_DRIVERS", (str(driver),))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert data_parallel.visible_gpus() == []
    driver.touch()
    with pytest.raises(ModuleNotFoundError):
        data_parallel.visible_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert data_parallel.visible_gpus() == []


def test_cache_keys_cover_backend_device_and_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    keys: list[str] = []

    def record(
        arguments: Any, settings: Any, missing: list[program.RequestedCell], gpus: int
    ) -> None:
        keys.extend(cell.key for cell in missing)
        raise SystemExit

    monkeypatch.setattr(program, "score", record)

    def key(gpus: list[str], *more: str) -> str:
        monkeypatch.setattr(data_parallel, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit):
            program.main()
        return keys[-1]

    alone = key([], "1")
    assert key([], "2") == alone
    assert key([], "1", "--backend", "vllm") != alone
    one_gpu = key(["H200"], "1")
    assert key(["H200", "H200"], "1") == one_gpu
    with_vllm = [key(["H200", "H200"], number, "--backend", "vllm") for number in ("1", "2")]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert len({alone, one_gpu, key(["H200", "H200"], "2"), *with_vllm}) == 5


def test_only_complete_cells_of_an_earlier_run_are_reused(tmp_path: Path) -> None:
    results, samples = tmp_path / "r.json", tmp_path / "r.jsonl"
    assert cache.read_scored(results, samples) == cache.Scored()
    cost = manifests.Cost(1.0, 2, "cpu", 0, [])
    metadata = {"lm_eval": {"task": "t", "version": 1}, "cost": vars(cost)}
    cells = [{"key": "a", "samples": 2}, {"key": "b", "samples": 1}]
    files.write_json(results, {**metadata, "cells": cells})
    files.write_json_lines(samples, [{"cell": "a"}, {"cell": "b"}])
    earlier = cache.read_scored(results, samples)
    assert list(earlier.cells) == ["b"]
    assert earlier.cost == cost
    new = cache.Scored({"c": {"key": "c"}}, {"c": [{"cell": "c"}]}, {"task": "u"}, None)
    both = earlier.merged_with(new).only(["c", "b"])
    assert list(both.cells) == list(both.samples) == ["c", "b"]
    assert both.lm_eval == {"task": "u"}
    for file, content in ((results, results.read_text()), (samples, samples.read_text())):
        file.write_text(content[:-5])
        assert cache.read_scored(results, samples) == cache.Scored()
        file.write_text(content)
