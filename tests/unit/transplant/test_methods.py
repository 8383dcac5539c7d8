"""Methods that transform dense changes, and the ports that store their recipes."""

import json
from pathlib import Path

import numpy
import pytest
import tiny
import torch
from conftest import run_program
from peft import PeftModel
from transformers import AutoModelForCausalLM

from portllm.errors import InputError
from portllm.storage import manifests
from portllm.transplant import edits, methods, ports
from portllm.weights import adapters
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint


def changes(count: int = 3, shape: tuple[int, int] = (6, 5)) -> list[numpy.ndarray]:
    generator = numpy.random.default_rng(0)
    return [generator.standard_normal(shape).astype(numpy.float32) for _ in range(count)]


def ties_by_the_paper(taken: list[numpy.ndarray], kept: int, scale: float) -> numpy.ndarray:
    """Compute algorithm 1 of arXiv 2306.01708 element by element."""
    vectors = []
    for change in taken:
        flat = change.ravel().astype(float)
        largest = set(sorted(range(flat.size), key=lambda index: -abs(flat[index]))[:kept])
        vectors.append([flat[index] if index in largest else 0.0 for index in range(flat.size)])
    result = []
    for numbers in zip(*vectors, strict=True):
        sign = numpy.sign(sum(numbers))
        agreeing = [number for number in numbers if number != 0 and numpy.sign(number) == sign]
        result.append(scale * sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return numpy.array(result).reshape(taken[0].shape)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.2, 0.5, 1])
def test_ties_equals_algorithm_1(count: int, density: float) -> None:
    taken = changes(count)
    result = methods.get("ties").apply("w", taken, density=density, scale=0.7)
    expected = ties_by_the_paper(taken, round(30 * density), 0.7)
    numpy.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    assert result.dtype == numpy.float32


def test_ties_with_one_patch_trims_it() -> None:
    (change,) = changes(1)
    result = methods.get("ties").apply("w", [change], density=0.2, scale=1.0)
    assert (result != 0).sum() == 6
    assert (result[result != 0] == change[result != 0]).all()
    assert abs(change[result == 0]).max() <= abs(result[result != 0]).min()
    none = methods.get("ties").apply("w", [change], density=0, scale=1.0)
    assert not none.any()
    equal = methods.get("ties").apply("w", [numpy.ones((4, 5), "f4")], density=0.5, scale=1.0)
    assert equal.sum() == 10


def test_dare_keeps_the_mean_and_is_reproducible() -> None:
    (change,) = changes(1, (400, 300))
    apply = methods.get("dare").apply
    result = apply("w", [change], drop=0.9, seed=3)
    kept = result != 0
    # Four standard errors of a share of 120,000 draws.
    assert abs(kept.mean() - 0.1) < 4 * (0.1 * 0.9 / change.size) ** 0.5
    numpy.testing.assert_allclose(result[kept], change[kept] / 0.1, rtol=1e-5)
    assert (apply("w", [change], drop=0.9, seed=3) == result).all()
    for other in (
        apply("w", [change], drop=0.9, seed=4),
        apply("v", [change], drop=0.9, seed=3),
        apply("w", [0 * change, change], drop=0.9, seed=3),
    ):
        assert abs((other != 0)[kept].mean() - 0.1) < 0.02
    assert (apply("w", [change, change], drop=0.0, seed=0) == 2 * change).all()


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("ties", {"density": 1.5}, r"ties\.density: found 1\.5, expected a number from 0 to 1"),
        ("ties", {"densitty": 0.5}, r"ties has no parameter 'densitty'; nearest: density"),
        ("dare", {"drop": 1}, r"dare\.drop: found 1, expected a number from 0 to 0\.9999"),
        ("dare", {"seed": 0.5}, r"dare\.seed: found 0\.5, expected a whole number, 0 or more"),
        ("scaled", {"scale": float("nan")}, r"scaled\.scale: found nan, expected a number"),
    ],
)
def test_an_invalid_parameter_is_an_error(kind: str, parameters: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        methods.check(kind, parameters)


def pair(tmp_path: Path, **options: object) -> tuple[Path, list[Path]]:
    model = tiny.save_model(tmp_path / "model", max_shard_size="10KB", **options)
    patches = [
        tiny.save_adapter(tmp_path / f"patch{seed}", model, seed=seed, r=seed) for seed in (2, 3)
    ]
    return model, patches


def run(*arguments: object) -> str:
    done = run_program("transplant.py", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dense_port_stores_a_recipe_instead_of_an_adapter(tmp_path: Path) -> None:
    model, patches = pair(tmp_path)
    port, merged, again = (tmp_path / name for name in ("port", "merged", "again"))
    method = ("--method", "ties", "--parameter", "density=0.5")
    both = ("--version", model, "--patch", *patches, "--weight", "1", "-0.5", *method)
    run(*both, "--adapter", port, "--merged", merged)
    assert not (port / "adapter_config.json").exists()
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        StoredAdapter(port)
    recipe = json.loads((port / "transplant.json").read_text())
    assert recipe["method"] == "ties"
    assert recipe["parameters"] == {"density": 0.5, "scale": 1.0}
    assert json.loads((merged / "manifest.json").read_text())["parameters"] == {
        "method": "ties",
        "density": 0.5,
        "scale": 1.0,
        "weights": [1.0, -0.5],
    }
    # The port by itself gives the same checkpoint as the patches.
    run("--version", model, "--patch", port, "--merged", again)
    deltas = [edits.deltas_of(adapters.load(patch)) for patch in patches]
    before, after = dict(Checkpoint(model).tensors()), dict(Checkpoint(merged).tensors())
    checked = 0
    for name, weight in Checkpoint(again).tensors():
        assert torch.equal(weight, after[name])
        if name in deltas[0]:
            taken = [deltas[0][name].expanded(), -0.5 * deltas[1][name].expanded()]
            expected = ties_by_the_paper(taken, round(weight.numel() / 2), 1.0)
            change = (weight - before[name]).double().numpy()
            numpy.testing.assert_allclose(change, expected, atol=1e-6)
            checked += 1
    assert checked == 14


def test_scoring_adds_a_dense_port_and_removes_it_again(tmp_path: Path) -> None:
    from portllm.scoring import hf

    model, patches = pair(tmp_path, dtype=torch.bfloat16)
    port, merged = tmp_path / "port", tmp_path / "merged"
    arguments = ("--version", model, "--patch", patches[0], "--method", "dare")
    run(*arguments, "--adapter", port, "--merged", merged)
    assert ports.how_applied(port) == "merged weights"
    assert ports.how_applied(patches[0]) == "attached adapter"
    loaded, _ = hf.load_version(model, "auto")
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    expected = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    with hf.patched(loaded, port) as patched:
        assert patched is loaded
        result = {name: tensor.cpu().clone() for name, tensor in patched.state_dict().items()}
    assert any(not torch.equal(before[name].cpu(), result[name]) for name in result)
    assert all(torch.equal(expected[name], tensor) for name, tensor in result.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.state_dict().items())


def test_several_patches_give_one_checkpoint_or_one_each(tmp_path: Path) -> None:
    model, patches = pair(tmp_path)
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    start = ("--version", model, "--patch", *patches)
    shown = run(*start, "--merged", one, two, "--dry-run")
    assert [line.split(":")[0] for line in shown.splitlines()] == [str(one), str(two)]
    assert "14 weights" in shown
    assert not one.exists()
    run(*start, "--merged", one, two)
    run(*start, "--weight", "0.5", "0.5", "--merged", both)
    first, second, mean = (dict(Checkpoint(path).tensors()) for path in (one, two, both))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    content = json.loads((both / "manifest.json").read_text())["content"]
    assert set(content) >= {path.name for path in Checkpoint(both).shard_paths}
    # The version has no manifest; the hash computed during the merge equals that of its files.
    written = json.loads((one / "manifest.json").read_text())
    assert written["inputs"]["version"] == manifests.content_hash(model)
    taken_back = tmp_path / "taken back"
    run("--version", one, "--patch", patches[0], "--unmerge", "--merged", taken_back)
    for name, tensor in Checkpoint(taken_back).tensors():
        torch.testing.assert_close(tensor, dict(Checkpoint(model).tensors())[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merged", "a", "b", "c"], "--output: 3 given, expected one"),
        (["--merged", "a", "--weight", "1"], "--weight: 1 given, expected one for each of 2"),
        (["--adapter", "a"], "an adapter holds one unscaled patch; merge the weighted sum"),
        (
            ["--adapter", "a", "--unmerge"],
            "--unmerge writes a checkpoint: give --merged instead",
        ),
        (["--merged", "a", "a"], "two outputs are the same directory"),
        (["--merged", "MODEL"], "contains an input; choose another directory"),
        (["--merged", "."], "contains an input; choose another directory"),
        (["--merged", "mine"], "already exists and was not written by portllm"),
        (["--merged", "a", "--threads", "0"], "--threads: found 0, expected one or more"),
        (["--merged", "a", "--method", "tis"], "no transplant method 'tis'; nearest: ties"),
    ],
)
def test_contradictory_options_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    from portllm.cli import transplant

    model, patches = pair(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    monkeypatch.chdir(tmp_path)
    given = [str(model) if word == "MODEL" else word for word in arguments]
    start = ["transplant.py", "--version", str(model), "--patch", *map(str, patches)]
    monkeypatch.setattr("sys.argv", [*start, *given])
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as exit_:
        transplant.main("Transplant.")
    assert str(exit_.value).startswith("error: ")
    assert message in str(exit_.value)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def test_a_dense_port_is_applied_unchanged(tmp_path: Path) -> None:
    model, patches = pair(tmp_path)
    port = tmp_path / "port"
    run("--version", model, "--patch", patches[0], "--method", "dare", "--adapter", port)
    for options in (["--method", "scaled"], ["--weight", "0.5"]):
        done = run_program(
            *("transplant.py", "--version", str(model), "--patch", str(port), *options),
            *("--merged", str(tmp_path / "merged")),
        )
        assert done.returncode != 0
        assert "port is a port of method dare, which can only be applied alone" in done.stderr
    (port / "transplant.json").write_text('{"method": "dare"}')
    with pytest.raises(InputError, match=r"transplant\.json: not the recipe of a port"):
        ports.read(port)


def test_patches_that_are_not_additive_are_ported_by_direct_only(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = adapters.load(tiny.save_adapter(tmp_path / "adapter", model, use_dora=True))
    assert ports.transplanted(adapter, "direct", {}).tensors.keys() == adapter.tensors.keys()
    with pytest.raises(InputError, match=r"method scaled needs an additive patch; .* only direct"):
        ports.transplanted(adapter, "scaled", {"scale": 2.0})
    with pytest.raises(InputError, match="the result of method dare is not an adapter"):
        ports.transplanted(adapter, "dare", {})


def test_a_ported_dora_attaches_like_the_original(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    adapter = tiny.save_adapter(tmp_path / "adapter", model, use_dora=True)
    run("--version", model, "--patch", adapter, "--adapter", tmp_path / "port")
    tokens = torch.arange(3, 20)[None]
    with torch.inference_mode():
        first, second = (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), path)(
                tokens
            ).logits
            for path in (adapter, tmp_path / "port")
        )
    assert torch.equal(first, second)
