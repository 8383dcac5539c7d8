"""The `portllm` command, run as its users run it."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import tiny
from conftest import PROJECT, run_program
from safetensors.numpy import load_file

from portllm.storage import files, manifests

HEAVY = ("numpy", "torch", "safetensors", "huggingface_hub", "yaml", "snakemake")


def command(
    *arguments: object, environment: str = "eval", python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python -m portllm`, which does what the console script does."""
    interpreter = PROJECT / ".venvs" / environment / "bin" / "python"
    return subprocess.run(
        [interpreter, *python, "-m", "portllm", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run(*arguments: object) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("cli") / "base", max_shard_size="10KB")


@pytest.fixture(scope="module")
def patches(base: Path) -> list[Path]:
    return [
        tiny.save_adapter(base.parent / f"patch{seed}", base, seed=seed, r=seed) for seed in (2, 3)
    ]


@pytest.fixture(scope="module")
def wider(base: Path) -> Path:
    return tiny.save_model(base.parent / "wider", intermediate_size=48)


def weights(directory: Path) -> dict[str, numpy.ndarray]:
    """Every weight of a checkpoint in float32."""
    shards = directory.glob("*.safetensors")
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def test_help_starts_quickly_and_loads_nothing_heavy() -> None:
    done = command("--help", python=("-X", "importtime"))
    for name in ("check", "port", "merge", "unmerge", "plan"):
        assert f"\n    {name} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & set(HEAVY)

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, as the wall time depends on what else the machine does.
    assert min(processor_seconds() for _ in range(5)) < 0.2


@pytest.mark.parametrize("name", ["check", "port", "merge", "unmerge", "plan"])
def test_every_subcommand_has_a_help_page(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert f"usage: portllm {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["chek"], "invalid choice: 'chek'"),
        (["check", "--patch", "p"], "the following arguments are required: --base"),
        (["check", "--patch", "p", "--base", "b", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_has_status_2(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_check_reports_every_patch(base: Path, patches: list[Path], wider: Path) -> None:
    done = command("check", "--patch", *patches, "--base", base)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{patch} fits {base} (14 weights)" for patch in patches]
    done = command("check", "--patch", *patches, "nowhere", "--base", wider)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True, True]
    assert lines[1].startswith(f"error: {patches[1]} does not fit {wider}: it changes ")
    assert lines[2].startswith("error: --patch: nowhere is neither a directory here nor a hub id")


@pytest.fixture
def permuted(base: Path, tmp_path: Path) -> Path:
    """The base with two words of its vocabulary exchanged."""
    shutil.copytree(base, tmp_path / "permuted")
    path = tmp_path / "permuted" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    return tmp_path / "permuted"


@pytest.mark.parametrize("known_from", ["base", "tokenizer"])
def test_an_adapter_without_a_manifest_is_compared_with_its_base(
    base: Path, patches: list[Path], permuted: Path, tmp_path: Path, known_from: str
) -> None:
    patch = tmp_path / "patch"
    shutil.copytree(patches[0], patch)
    if known_from == "tokenizer":
        set_base(patch, "acme/elsewhere")
        shutil.copyfile(base / "tokenizer.json", patch / "tokenizer.json")
    assert command("check", "--patch", patch, "--base", base).returncode == 0
    done = command("check", "--patch", patch, "--base", permuted)
    assert done.returncode == 1
    message = f"error: {patch} does not fit {permuted}: the vocabularies of their tokenizers differ"
    assert done.stderr.startswith(message)


def set_base(patch: Path, name: str) -> None:
    """Write another base model into an adapter's configuration."""
    path = patch / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


def test_a_tokenizer_that_cannot_be_compared_is_named(
    base: Path, patches: list[Path], permuted: Path, tmp_path: Path
) -> None:
    patch = tmp_path / "patch"
    shutil.copytree(patches[0], patch)
    set_base(patch, "acme/elsewhere")
    done = command("check", "--patch", patch, "--base", permuted)
    assert done.stdout == f"{patch} fits {permuted} (14 weights, tokenizer not checked)\n"
    assert "its base model (acme/elsewhere) is not a directory here" in done.stderr
    # A study refuses.
    program = ("transplant.py", "--patch", str(patch), "--version", str(permuted))
    output = ("--adapter", str(tmp_path / "port"))
    assert run_program(*program, *output).returncode == 0
    done = run_program(*program, "--adapter", str(tmp_path / "other"), "--names", "model=m")
    assert done.returncode == 1
    assert "so that their tokenizers cannot be compared" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_fetched_patch_records_the_tokenizer_of_its_base(
    base: Path, patches: list[Path], permuted: Path, tmp_path: Path
) -> None:
    patch = tmp_path / "patch"
    shutil.copytree(patches[0], patch)
    program = ("fetch_patch.py", "--path", str(patch), "--output")
    done = run_program(*program, str(tmp_path / "wrong"), "--base", str(permuted))
    assert done.returncode == 1
    assert "the vocabularies of their tokenizers differ" in done.stderr
    set_base(patch, "acme/elsewhere")
    done = run_program(*program, str(tmp_path / "fetched"), "--base", str(base))
    assert done.returncode == 0, done.stderr
    for version, fits in ((base, True), (permuted, False)):
        done = command("check", "--patch", tmp_path / "fetched", "--base", version)
        assert (done.returncode == 0) == fits


def test_port_writes_the_adapter_that_the_stage_program_writes(
    base: Path, patches: list[Path], tmp_path: Path
) -> None:
    method = ("--method", "scaled", "--parameter", "scale=0.5")
    run("port", "--patch", patches[0], "--base", base, *method, "--output", tmp_path / "port")
    done = run_program(
        *("transplant.py", "--patch", str(patches[0]), "--version", str(base), *method),
        *("--adapter", str(tmp_path / "other")),
    )
    assert done.returncode == 0, done.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "port" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    manifest = files.read_json(tmp_path / "port" / "manifest.json")
    assert manifest["parameters"] == {"method": "scaled", "scale": 0.5}
    assert "sources" not in manifest


def test_merge_and_unmerge(base: Path, patches: list[Path], tmp_path: Path) -> None:
    shares = ("--weight", "0.7", "-0.3")
    both, one, two, back = (tmp_path / name for name in ("both", "one", "two", "back"))
    start = ("--patch", *patches, "--base", base)
    shown = run("merge", *start, "--output", both, "--dry-run")
    assert shown.startswith(f"{both}: 0.000 GB in ")
    assert not both.exists()
    run("merge", *start, *shares, "--output", both)
    run("merge", *start, "--output", one, two)
    original, first, second, result = map(weights, (base, one, two, both))
    for name, weight in original.items():
        expected = 0.7 * (first[name] - weight) - 0.3 * (second[name] - weight)
        numpy.testing.assert_allclose(result[name] - weight, expected, atol=1e-6)
    run("unmerge", "--patch", *patches, *shares, "--base", both, "--output", back)
    for name, weight in weights(back).items():
        numpy.testing.assert_allclose(weight, original[name], atol=1e-6)


@pytest.mark.parametrize("kind", ["base", "patch"])
def test_what_is_neither_directory_nor_hub_id_is_one_line(
    base: Path, patches: list[Path], tmp_path: Path, kind: str
) -> None:
    inputs = {"base": str(base), "patch": str(patches[0]), kind: str(tmp_path / "absent")}
    done = command(
        *("merge", "--base", inputs["base"], "--patch", inputs["patch"]),
        *("--output", tmp_path / "merged"),
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: --{kind}: {tmp_path / 'absent'} is neither a directory here nor a hub id "
        "(owner/name@revision:subfolder)\n"
    )


def test_a_package_that_is_missing_is_named_with_its_extra(
    base: Path, patches: list[Path], tmp_path: Path
) -> None:
    # The workflow environment has neither torch nor huggingface_hub.
    start = ("merge", "--patch", patches[0], "--output", tmp_path / "merged")
    done = command(*start, "--base", base, environment="workflow")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: torch is not installed; run: pip install 'portllm[merge]'"
    )
    done = command(*start, "--base", "owner/model", environment="workflow")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("run: pip install 'portllm[hub]'")
    assert list(tmp_path.iterdir()) == []


OPENED = """
import json, os, sys
from pathlib import Path
opened = []
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        opened.append(os.fspath(arguments[0]))
sys.addaudithook(note)
from portllm.cli.main import main
try:
    main()
finally:
    Path(os.environ["OPENED"]).write_text(json.dumps(opened))
"""


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (["check"], {"base": 1, "patch2": 1}),
        # The patch is hashed for the manifest, after its header and its tensors were read. The
        # base's files are compared with its manifest, because they are below 1 MiB.
        (["port", "--output", "OUT"], {"base": 2, "patch2": 3}),
        (["merge", "--output", "OUT"], {"base": 3, "patch2": 3}),
        (["merge", "--output", "OUT", "OTHER"], {"base": 3, "patch2": 3}),
    ],
)
def test_a_checkpoints_header_is_read_once(
    base: Path, patches: list[Path], tmp_path: Path, arguments: list[str], most: dict[str, int]
) -> None:
    name, *rest = arguments
    given = patches if "OTHER" in arguments else patches[:1]
    # A manifest spares a large base from being hashed.
    manifests.write_for_directory(
        base, stage="base", parameters={}, inputs={}, cost=manifests.Meter().read(), packages=()
    )
    words = [str(tmp_path / word) if word.isupper() else word for word in rest]
    interpreter = PROJECT / ".venvs" / "eval" / "bin" / "python"
    inputs = ["--base", str(base), "--patch", *map(str, given)]
    done = subprocess.run(
        [interpreter, "-c", OPENED, name, *inputs, *words],
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT / "workflow_scripts"),
            "OPENED": str(tmp_path / "opened.json"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    (base / manifests.NAME).unlink()
    assert done.returncode == 0, done.stderr
    opened = [Path(path) for path in json.loads((tmp_path / "opened.json").read_text())]
    for directory, times in most.items():
        shards = sorted((base.parent / directory).glob("*.safetensors"))
        assert {path.name: opened.count(path) for path in shards} == {
            path.name: times for path in shards
        }
    for path in (base / "config.json", base / "model.safetensors.index.json"):
        # Once to read it, once to compare it with the manifest, once for each copy of it.
        copies = sum(word.isupper() for word in rest) if name == "merge" else 0
        assert opened.count(path) <= (1 if name == "check" else 2) + copies
