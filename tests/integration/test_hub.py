"""Fetching with the hub's real clients from a small hub server on loopback."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import tiny
import torch
import yaml
from conftest import PROJECT
from hub_server import Hub
from safetensors.torch import save_file

from portllm.storage import files

PYTHON = PROJECT / ".venvs" / "eval" / "bin" / "python"
SCRIPTS = PROJECT / "workflow_scripts"
NEVER = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".onnx", ".py")
SHARD = "model.safetensors"
# The client writes to disk by 10 MiB, so a file that breaks half-way is larger than that.
CHUNK = 10 * 2**20
BREAK = 2 * CHUNK + 12345


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serving() as served:
        yield served


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several shards, next to files that must not be fetched."""
    directory = tiny.save_model(tmp_path_factory.mktemp("hub") / "sharded", max_shard_size="15KB")
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 2
    for name in ("pytorch_model.bin", "flax_model.msgpack", "model.gguf", "modeling_odd.py"):
        (directory / name).write_bytes(b"not to be fetched")
    for name in ("consolidated.safetensors", "onnx/model.onnx", "original/model.safetensors"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"not to be fetched")
    return directory


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that looks like a model and is large enough to be fetched in several pieces."""
    directory = tmp_path_factory.mktemp("hub") / "large"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(tiny.config()))
    values = torch.randint(0, 255, (3 * CHUNK,), dtype=torch.uint8)
    save_file({"weight": values}, directory / SHARD, metadata={"format": "pt"})
    return directory


def environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the environment of a user with their own hub cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    more = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return {**kept, **more, **({"HF_TOKEN": token} if token else {})}


def command(program: str, *arguments: str | Path) -> list[str]:
    return [str(PYTHON), str(SCRIPTS / program), *map(str, arguments)]


def run(
    hub: Hub, tmp_path: Path, program: str, *arguments: str | Path, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program with `--output`; `stdout` of the result contains both streams."""
    return subprocess.run(
        command(program, *arguments, "--output", tmp_path / "output"),
        env=environment(hub, tmp_path / "home", token),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def error_of(done: subprocess.CompletedProcess[str], tmp_path: Path) -> str:
    """Check that a program failed without output, and return its error line."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert lines == done.stdout.splitlines()[-1:], done.stdout
    left = [path.name for path in tmp_path.iterdir() if "output" in path.name]
    assert left == []
    return lines[0].removeprefix("error: ")


def assert_equal(directory: Path, original: Path) -> None:
    """Check that a directory has exactly the weights, config and tokenizer of the original."""
    kept = ("*.json", "model.safetensors", "model-*-of-*.safetensors", "*.jinja")
    names = {path.name for pattern in kept for path in original.glob(pattern)}
    assert {path.name for path in directory.iterdir()} == names | {"manifest.json"}
    for name in names:
        assert (directory / name).read_bytes() == (original / name).read_bytes()


def test_a_model_in_shards_is_fetched_and_its_commit_recorded(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    repository = hub.add("models", "owner/sharded", sharded, branches=("main", "v1"))
    done = run(
        hub, tmp_path, "fetch_model.py", "--hub", "owner/sharded", "--revision", "v1", token=None
    )
    assert done.returncode == 0, done.stdout
    assert_equal(tmp_path / "output", sharded)
    written = files.read_json(tmp_path / "output" / "manifest.json")
    assert written["revision"] == repository.commit
    assert written["parameters"] == {"hub": "owner/sharded", "revision": "v1", "path": None}
    requested = [request.path for request in hub.requests]
    assert not [path for path in requested if path.endswith(NEVER)]
    assert not [path for path in requested if "consolidated" in path or "original/" in path]
    # Nothing is on disk twice, and the cache can be cleared.
    for shard in (tmp_path / "output").glob("*.safetensors"):
        assert not shard.is_symlink()
        assert shard.stat().st_nlink == 2


def test_a_second_fetch_uses_the_cache(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    commit = hub.add("models", "owner/sharded", sharded).commit
    arguments = ("fetch_model.py", "--hub", "owner/sharded", "--revision", commit)
    assert run(hub, tmp_path, *arguments).returncode == 0
    hub.repair()
    assert run(hub, tmp_path, *arguments).returncode == 0
    assert not hub.asked_for(".safetensors")
    assert_equal(tmp_path / "output", sharded)


def test_a_cache_on_another_file_system_is_linked_symbolically(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on another file system than the temporary directory")
    hub.add("models", "owner/sharded", sharded)
    with tempfile.TemporaryDirectory(dir=shared_memory) as home:
        (tmp_path / "home").symlink_to(home)
        done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/sharded")
        assert done.returncode == 0, done.stdout
        assert_equal(tmp_path / "output", sharded)
        for shard in (tmp_path / "output").glob("*.safetensors"):
            assert "blobs" in shard.readlink().parts
    assert "is a symbolic link: keep " in done.stdout


def test_a_missing_model_a_missing_revision_and_a_malformed_id_are_errors(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    hub.add("models", "owner/sharded", sharded)
    for token in (None, hub.token):
        done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/shraded", token=token)
        assert error_of(done, tmp_path).startswith("the hub has no model 'owner/shraded', or it is")
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/sharded", "--revision", "v2")
    assert error_of(done, tmp_path).startswith("the model owner/sharded has no revision 'v2'")
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "a/b/c")
    assert "a/b/c" in error_of(done, tmp_path)


def test_an_unreachable_hub_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.port = 9  # where nobody listens
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/model")
    assert "from http://127.0.0.1:9: " in error_of(done, tmp_path)


def test_the_error_for_a_gated_model_explains_how_to_get_access(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    hub.add("models", "owner/gated", sharded, gated=True)
    arguments = ("fetch_model.py", "--hub", "owner/gated")
    output = error_of(run(hub, tmp_path, *arguments), tmp_path)
    assert output.startswith(f"owner/gated is gated: ask for access at {hub.endpoint}/owner/gated")
    assert "HF_TOKEN" in output
    output = error_of(run(hub, tmp_path, *arguments, token=hub.strangers_token), tmp_path)
    assert "the account of HF_TOKEN has no access" in output
    assert hub.strangers_token not in output
    output = error_of(run(hub, tmp_path, *arguments, token="hf_mistyped"), tmp_path)
    assert "the hub rejects HF_TOKEN" in output


def test_a_token_gives_access_to_a_gated_model_and_is_not_stored(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    hub.add("models", "owner/gated", sharded, gated=True)
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/gated", token=hub.token)
    assert done.returncode == 0, done.stdout
    assert_equal(tmp_path / "output", sharded)
    assert hub.token not in done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), path
    weights = hub.asked_for(".safetensors")
    tokens = {request.host: set() for request in weights}
    for request in weights:
        tokens[request.host].add(request.token)
    assert tokens == {"127.0.0.1": {hub.token}, "localhost": {None}}


def assert_resumed(hub: Hub, large: Path, tmp_path: Path) -> None:
    """Check that another run fetches exactly the missing bytes of a file."""
    hub.repair()
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    assert done.returncode == 0, done.stdout
    assert_equal(tmp_path / "output", large)
    ranges = {request.range for request in hub.asked_for(SHARD)}
    assert ranges == {f"bytes={2 * CHUNK}-"}
    assert hub.sent[SHARD] == (large / SHARD).stat().st_size - 2 * CHUNK
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_a_failed_fetch_is_resumed(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    hub.break_after[SHARD] = BREAK
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    error = error_of(done, tmp_path)
    assert "the server answers 503 Service Unavailable, 6 times in a row" in error
    assert "(rerun to resume the download)" in error
    assert_resumed(hub, large, tmp_path)


def test_a_killed_fetch_is_resumed(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    hub.break_after[SHARD], hub.hang = BREAK, True
    arguments = command(
        "fetch_model.py", "--hub", "owner/large", "--output", tmp_path / "killed" / "output"
    )
    fetch = subprocess.Popen(
        arguments, env=environment(hub, tmp_path / "home"), stderr=subprocess.DEVNULL
    )
    assert hub.hanging.wait(60)
    wait_for_bytes(tmp_path / "home", 2 * CHUNK)
    fetch.send_signal(signal.SIGKILL)
    fetch.wait()
    assert not (tmp_path / "killed" / "output").exists()
    assert_resumed(hub, large, tmp_path)


def wait_for_bytes(home: Path, size: int) -> None:
    """Wait until the client has written the bytes that it received."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if any(path.stat().st_size >= size for path in home.rglob("*.incomplete")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing was written")


def test_a_corrupt_download_is_fetched_again(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    hub.break_after[SHARD] = BREAK
    run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    (partial,) = (tmp_path / "home").rglob("*.incomplete")
    partial.write_bytes(b"\0" * partial.stat().st_size)
    hub.repair()
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    assert f"the download of {SHARD} was corrupt" in error_of(done, tmp_path)
    assert run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large").returncode == 0
    assert_equal(tmp_path / "output", large)


@pytest.mark.parametrize("name", ["config.json", SHARD])
def test_a_file_that_does_not_match_its_hash_is_an_error(
    hub: Hub, large: Path, tmp_path: Path, name: str
) -> None:
    hub.add("models", "owner/large", large)
    content = (large / name).read_bytes()
    hub.tampered[name] = content[:-2] + b"!" + content[-1:]
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    assert f"{name} arrived damaged: found " in error_of(done, tmp_path)
    hub.repair()
    assert run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large").returncode == 0
    assert_equal(tmp_path / "output", large)


def test_a_busy_hub_is_asked_again(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    now = {"Retry_After": "0"}
    # A look-up, the metadata and content of files, and a file in the storage.
    for ending in ("owner/large", "revision/main", "config.json", SHARD):
        hub.failures[ending] = [(429, now), (500, now), (502, now), (503, now), (504, now)]
    hub.failures["config.json"][:2] = [(503, {}), (429, {"Retry_After": "2"})]
    start = time.monotonic()
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    assert done.returncode == 0, done.stdout
    assert not [left for left in hub.failures.values() if left]
    assert time.monotonic() - start > 3
    assert_equal(tmp_path / "output", large)


def test_a_hub_that_is_busy_for_long_is_an_error(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    hub.failures[SHARD] = [(429, {"Retry_After": "3600"})]
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/large")
    error = error_of(done, tmp_path)
    assert "the server answers 429 Too Many Requests and asks to wait 3600 s" in error


def test_a_download_that_trickles_is_given_up(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add("models", "owner/large", large)
    hub.trickling.add(SHARD)
    command_line = command(
        "fetch_model.py", "--hub", "owner/large", "--output", tmp_path / "output"
    )
    variables = environment(hub, tmp_path / "home") | {"HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    done = subprocess.run(command_line, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{SHARD} arrives too slowly: " in done.stderr.splitlines()[-1]


def test_truncated_and_pickled_weights_are_errors(hub: Hub, large: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_text("{}")
    (cut / SHARD).write_bytes((large / SHARD).read_bytes()[:1000])
    hub.add("models", "owner/cut", cut)
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/cut")
    assert f"{SHARD}: truncated: found 1000 bytes" in error_of(done, tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("models", "owner/pickled", pickled)
    done = run(hub, tmp_path, "fetch_model.py", "--hub", "owner/pickled")
    assert "pytorch_model.bin is a pickle, which is never fetched" in error_of(done, tmp_path)
    assert not hub.asked_for(".bin")


def test_a_mirror_replaces_the_hub(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "owner").mkdir(parents=True)
    (mirror / "owner" / "sharded").symlink_to(sharded)
    arguments = ("fetch_model.py", "--hub-mirror", mirror, "--hub")
    done = run(hub, tmp_path, *arguments, "owner/shraded")
    assert error_of(done, tmp_path) == f"hub_mirror {mirror} has no owner/shraded"
    done = run(hub, tmp_path, *arguments, "owner/sharded")
    assert done.returncode == 0, done.stdout
    assert_equal(tmp_path / "output", sharded)
    # The mirror may move.
    assert not any(path.is_symlink() for path in (tmp_path / "output").iterdir())
    assert hub.requests == []


@pytest.mark.parametrize("place", ["hub", "mirror", "path"])
def test_a_model_and_an_adapter_in_subfolders(hub: Hub, tmp_path: Path, place: str) -> None:
    repository = tmp_path / "mirror" / "owner" / "many"
    model = tiny.save_model(repository / "steps" / "t1", max_shard_size="15KB")
    tiny.save_model(repository, seed=3)
    adapter = tiny.save_adapter(repository / "boolq" / "t1", model)
    commit = hub.add("models", "owner/many", repository).commit
    source: dict[str, tuple[str | Path, ...]] = {
        "hub": ("--hub", "owner/many"),
        "mirror": ("--hub", "owner/many", "--hub-mirror", tmp_path / "mirror"),
        "path": ("--path", repository),
    }
    for program, subfolder, original in (
        ("fetch_model.py", "steps/t1", model),
        ("fetch_patch.py", "boolq/t1", adapter),
    ):
        work = tmp_path / program
        work.mkdir()
        done = run(hub, work, program, *source[place], "--subfolder", subfolder)
        assert done.returncode == 0, done.stdout
        weights = sorted(original.glob("*.safetensors"))
        assert [path.name for path in sorted((work / "output").glob("*.safetensors"))] == [
            path.name for path in weights
        ]
        for path in weights:
            assert (work / "output" / path.name).read_bytes() == path.read_bytes()
        manifest = files.read_json(work / "output" / "manifest.json")
        assert manifest["parameters"]["subfolder"] == subfolder
        assert manifest["revision"] == (commit if place == "hub" else None)
    refused = tmp_path / "refused"
    refused.mkdir()
    done = run(hub, refused, "fetch_model.py", *source[place], "--subfolder", "step")
    assert "/many has no folder 'step'; nearest: steps" in f"/{error_of(done, refused)}"


def test_only_an_adapter_is_fetched_as_a_patch(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    adapter = tiny.save_adapter(tmp_path / "adapter", base)
    (adapter / "training_args.bin").write_bytes(b"not to be fetched")
    commit = hub.add("models", "owner/adapter", adapter).commit
    done = run(hub, tmp_path, "fetch_patch.py", "--hub", "owner/adapter")
    assert done.returncode == 0, done.stdout
    kept = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "output").iterdir()} == {*kept, "manifest.json"}
    assert files.read_json(tmp_path / "output" / "manifest.json")["revision"] == commit
    hub.add("models", "owner/sharded", sharded)
    done = run(hub, tmp_path / "other", "fetch_patch.py", "--hub", "owner/sharded")
    assert "owner/sharded has no weights: expected adapter_model.safetensors" in done.stdout


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A dataset."""
    directory = tmp_path / "questions"
    directory.mkdir()
    (directory / "README.md").write_text("# Questions\n")
    for split in ("train", "test"):
        rows = [{"question": f"{split} {number}?", "answer": number % 2} for number in range(5)]
        files.write_json_lines(directory / f"{split}.jsonl", rows)
    return directory


def corpus(hub: Hub, tmp_path: Path, token: str | None = None, **source: Any) -> Any:
    definition = json.dumps({"sources": [{"hub": "owner/questions", **source}]})
    return run(hub, tmp_path, "make_corpus.py", "--definition", definition, token=token)


@pytest.mark.slow
def test_a_corpus_from_the_hub_records_its_commit(
    hub: Hub, questions: Path, tmp_path: Path
) -> None:
    commit = hub.add("datasets", "owner/questions", questions).commit
    for revision in ({"revision": commit}, {}):
        done = corpus(hub, tmp_path, fields={"text": "{question} {answer}"}, limit=2, **revision)
        assert done.returncode == 0, done.stdout
        rows = list(files.read_json_lines(tmp_path / "output"))
        assert rows == [{"text": "train 0? 0"}, {"text": "train 1? 1"}]
        written = files.read_json(tmp_path / "output.manifest.json")
        assert written["revisions"] == [{"hub": "owner/questions", "revision": commit}]


@pytest.mark.slow
def test_a_dataset_that_is_damaged_or_busy(hub: Hub, questions: Path, tmp_path: Path) -> None:
    hub.add("datasets", "owner/questions", questions)
    content = (questions / "train.jsonl").read_bytes()
    hub.tampered["train.jsonl"] = content.replace(b"3", b"4")
    assert "train.jsonl arrived damaged" in error_of(corpus(hub, tmp_path), tmp_path)
    hub.repair()
    hub.failures["train.jsonl"] = [(429, {"Retry_After": "0"}), (503, {"Retry_After": "0"})]
    done = corpus(hub, tmp_path)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "output").read_bytes() == content
    assert hub.failures["train.jsonl"] == []


@pytest.mark.slow
def test_a_missing_dataset_revision_or_column_is_an_error(
    hub: Hub, questions: Path, tmp_path: Path
) -> None:
    done = corpus(hub, tmp_path)
    assert error_of(done, tmp_path).startswith("the hub has no dataset 'owner/questions', or")
    repository = hub.add("datasets", "owner/questions", questions)
    output = error_of(corpus(hub, tmp_path, revision="v2"), tmp_path)
    assert output.startswith("the dataset owner/questions has no revision 'v2'")
    output = error_of(corpus(hub, tmp_path, split="trian"), tmp_path)
    assert 'Unknown split "trian"' in output
    assert "train" in output
    output = error_of(corpus(hub, tmp_path, name="maths"), tmp_path)
    assert "'maths' not found. Available: ['default']" in output
    repository.gated = True
    output = error_of(corpus(hub, tmp_path / "new"), tmp_path)
    assert f"ask for access at {hub.endpoint}/datasets/owner/questions" in output
    done = corpus(hub, tmp_path / "new", token=hub.token)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_task_data_from_the_hub(hub: Hub, questions: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    definition = {
        "task": "questions",
        "dataset_path": "owner/questions",
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": ["no", "yes"],
        "metric_list": [{"metric": "acc"}],
    }
    (tasks / "questions.yaml").write_text(yaml.safe_dump(definition))
    arguments = ("make_task_data.py", "--lm-eval", "questions", "--include", tasks)
    output = error_of(run(hub, tmp_path, *arguments), tmp_path)
    assert output.startswith("the hub has no dataset 'owner/questions'")
    repository = hub.add("datasets", "owner/questions", questions, gated=True)
    output = error_of(run(hub, tmp_path, *arguments), tmp_path)
    assert f"ask for access at {hub.endpoint}/datasets/owner/questions" in output
    done = run(hub, tmp_path, *arguments, token=hub.token)
    assert done.returncode == 0, done.stdout
    examples = list(files.read_json_lines(tmp_path / "output" / "train.jsonl"))
    assert examples[1] == {"prompt": "train 1?", "completion": " yes"}
    assert files.read_json(tmp_path / "output" / "manifest.json")["revision"] == (repository.commit)
