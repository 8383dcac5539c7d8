"""Compare merging times: cp, this project, PEFT and mergekit on the same checkpoint.

Writes bf16 checkpoints of Mistral's architecture with random weights and a rank-8 patch on all
linear layers, and runs every contender on them in turn, each in its own process:

    .venvs/eval/bin/python benchmarks/transplant.py --gigabytes 4 --with-mergekit

Prints medians of wall seconds, of their ratio to a plain cp in the same round, and of peak resident
memory. The checkpoint is read once before, so that it is in the page cache for all. mergekit is
installed with uv into its own environment under --work.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
SCRIPTS = PROJECT / "workflow_scripts"
MERGEKIT = "mergekit==0.1.5"
VOCABULARY = 32_000

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model, patch, output = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
PeftModel.from_pretrained(base, patch).merge_and_unload().save_pretrained(output)
"""

WITHOUT_HASHES = """
import sys
from pathlib import Path
from portllm.storage import files
from portllm.transplant import edits, merging
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint
model, patch, output = map(Path, sys.argv[1:])
with files.whole_directory(output) as directory:
    changes = edits.edits_of(adapters.load(patch))
    merging.merge_many(Checkpoint(model), {directory: changes}, hashed=False)
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, help="size of the largest checkpoint"
    )
    parser.add_argument("--hidden", type=int, default=2048, help="width; Mistral-7B has 4096")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--with-mergekit", action="store_true")
    parser.add_argument("--work", type=Path, help="working directory (default: a temporary one)")
    return parser.parse_args()


def shapes(hidden: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of Mistral's weights: MLP 3.5 times as wide, 1/4 as many KV heads."""
    inner, keys = hidden * 7 // 2, hidden // 4
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"{start}.{name}.weight", shape
        yield f"{start}.input_layernorm.weight", (hidden,)
        yield f"{start}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def make_model(directory: Path, hidden: int, gigabytes: float) -> int:
    """Write a checkpoint of about `gigabytes`, in shards of 0.5 GB; return its size in bytes."""
    import torch
    from safetensors.torch import save_file

    layer = 2 * sum(shape[0] * shape[-1] for name, shape in shapes(hidden, 1) if "proj" in name)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * hidden) / layer))
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    parts: list[dict[str, torch.Tensor]] = [{}]
    weight_map, size, total = {}, 0, 0
    for name, shape in shapes(hidden, layers):
        tensor = torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
        if size > 5e8:
            save_file(parts[-1], directory / f"model-{len(parts):05}.safetensors", {"format": "pt"})
            parts[-1].clear()
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        weight_map[name] = f"model-{len(parts):05}.safetensors"
        size += tensor.nbytes
        total += tensor.nbytes
    save_file(parts[-1], directory / f"model-{len(parts):05}.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": hidden * 7 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 512,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    # Every version of a study has a manifest.
    sys.path.insert(0, str(SCRIPTS))
    from portllm.storage import manifests

    cost = manifests.Meter().read()
    manifests.write_for_directory(directory, stage="benchmark", parameters={}, inputs={}, cost=cost)
    return total


def make_patch(directory: Path, model: Path, seed: int) -> None:
    """Write a rank-8 LoRA adapter with random factors on all linear layers of a checkpoint."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, shape in shapes(config["hidden_size"], config["num_hidden_layers"]):
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for kind, size in (("A", (8, shape[1])), ("B", (shape[0], 8))):
                factor = torch.randn(size, generator=generator).mul_(0.02)
                factors[f"{module}.lora_{kind}.weight"] = factor
    directory.mkdir(parents=True)
    save_file(factors, directory / "adapter_model.safetensors", {"format": "pt"})
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    written = {**settings, "target_modules": modules, "bias": "none", "inference_mode": True}
    (directory / "adapter_config.json").write_text(json.dumps(written))


def make_mergekit(directory: Path) -> Path:
    """Install mergekit into an environment of its own; return its command."""
    uv = next(path for path in (PROJECT / ".venvs/uv/bin/uv", Path("uv")) if shutil.which(path))
    found = ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, directory], check=True)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        # The installed torch version; the newest may bring gigabytes of CUDA.
        torch = importlib.metadata.version("torch").partition("+")[0]
        subprocess.run([*install, *found, MERGEKIT, f"torch=={torch}"], check=True)
    return directory / "bin" / "mergekit-yaml"


def timed(command: list[object]) -> tuple[float, float]:
    """Return wall seconds and peak resident gigabytes of a command (the largest process)."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{said}")
    return wall, usage.ru_maxrss * 1024 / 1e9


Contender = Callable[[Path, list[Path], Path], list[object]]


def copies(patches: list[Path], output: Path) -> list[Path]:
    """List one output per patch."""
    return [output / str(index) for index in range(len(patches))]


def copying(command: str) -> Contender:
    """Return a shell command that copies $0 to $copy, once per patch."""
    loop = f'for copy in "$@"; do mkdir -p "$copy"; {command}; done'
    return lambda model, patches, output: ["sh", "-c", loop, model, *copies(patches, output)]


def without_manifest(model: Path, patches: list[Path], output: Path) -> list[object]:
    """Return the command for a version without a manifest, which is hashed as well."""
    bare = model.with_name("bare")
    bare.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name != "manifest.json" and not (bare / path.name).exists():
            (bare / path.name).symlink_to(path)
    return ours(bare, patches, output)


def ours(model: Path, patches: list[Path], output: Path) -> list[object]:
    """Return the command that writes one checkpoint per patch."""
    start = [sys.executable, SCRIPTS / "transplant.py", "--base", model, "--patch", *patches]
    return [*start, "--merged", *copies(patches, output)]


def contenders(work: Path, *, mergekit: bool) -> dict[str, Contender]:
    """Return the contenders' commands that merge a patch into `model`."""
    found: dict[str, Contender] = {
        "cp": copying('cp -r "$0"/. "$copy"'),
        "cp, then fsync": copying('cp -r "$0"/. "$copy" && sync "$copy"/*'),
        "transplant.py": ours,
        "the same, version without manifest": without_manifest,
        "the same without content hashes": lambda model, patches, output: [
            *(sys.executable, "-c", WITHOUT_HASHES, model, patches[0], output / "0")
        ],
        "PEFT merge_and_unload + save": lambda model, patches, output: [
            *(sys.executable, "-c", PEFT, model, patches[0], output)
        ],
    }
    if mergekit:
        command = make_mergekit(work / "mergekit")

        def task_arithmetic(model: Path, patches: list[Path], output: Path) -> list[object]:
            recipe = work / "mergekit.yaml"
            recipe.write_text(
                f"merge_method: task_arithmetic\nbase_model: {model}\n"
                "dtype: float32\nout_dtype: bfloat16\n"
                f"parameters: {{normalize: false}}\n"
                f"models: [{{model: {model}+{patches[0]}, parameters: {{weight: 1.0}}}}]\n"
            )
            options = ["--no-copy-tokenizer", "--lora-merge-cache", work / "lora_cache"]
            return [command, recipe, output, *options]

        found["mergekit task_arithmetic"] = task_arithmetic
    return found


def race(
    runners: dict[str, Contender],
    model: Path,
    patches: list[Path],
    work: Path,
    repetitions: int,
    compare: Callable[[str, Path], None] = lambda *_: None,
) -> dict[str, list[tuple[float, float]]]:
    """Run all contenders in turn, several times; `compare` sees the last outputs."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    output = work / "output"
    for repetition in range(repetitions):
        for name, command in runners.items():
            taken[name].append(timed(command(model, patches, output)))
            if repetition == repetitions - 1:
                compare(name, output)
            shutil.rmtree(output)
            shutil.rmtree(work / "lora_cache", ignore_errors=True)
    return taken


def differences(first: Path, second: Path) -> str:
    """Count differing elements of two checkpoints, and the largest difference in bf16 steps."""
    import torch

    sys.path.insert(0, str(SCRIPTS))
    from portllm.weights.checkpoints import Checkpoint

    others = Checkpoint(second)
    differing, most, count = 0, 0, 0
    for name, one in Checkpoint(first).tensors():
        other = others.read(name)
        count += one.numel()
        unequal = one != other
        differing += int(unequal.sum())
        if unequal.any():
            bits = [tensor[unequal].view(torch.int16).int() for tensor in (one, other)]
            # The integer order of negative floats is reversed.
            first_, second_ = (torch.where(some < 0, -(2**15) - some, some) for some in bits)
            most = max(most, int((first_ - second_).abs().max()))
    return f"{differing} of {count:,} numbers differ, by {most} step{'s' * (most != 1)} at most"


def report(taken: dict[str, list[tuple[float, float]]], size: int) -> None:
    walls = {name: [wall for wall, _ in runs] for name, runs in taken.items()}
    print("| | wall s | wall / cp | GB/s | peak memory GB |\n|---|---|---|---|---|")
    for name, runs in taken.items():
        ratios = [wall / cp for wall, cp in zip(walls[name], walls["cp"], strict=True)]
        wall, memory = statistics.median(walls[name]), statistics.median(peak for _, peak in runs)
        print(
            f"| {name} | {wall:.2f} | {statistics.median(ratios):.2f} | {size / 1e9 / wall:.2f} "
            f"| {memory:.2f} |"
        )


def gaps() -> None:
    """Print the largest difference of merged and attached logits on a small random model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    sys.path.insert(0, str(SCRIPTS))
    from portllm.transplant import merging
    from portllm.transplant.edits import edits_of
    from portllm.weights import adapters

    sizes = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
    print("| dtype | merged − attached | attached − un-patched |\n|---|---|---|")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**sizes, **heads)).to(dtype).eval()
        tokens = torch.randint(0, 1000, (4, 64))
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            plain = model(tokens).logits.float()
            settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
            wrapped = get_peft_model(model, settings)
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.05)
            attached = wrapped(tokens).logits.float()
            wrapped.save_pretrained(folder)
            edits = edits_of(adapters.load(Path(folder)))
            model = wrapped.unload()
            with merging.applied(dict(model.named_parameters()), edits):
                merged = model(tokens).logits.float()
        change = (attached - plain).abs().max().item()
        gap = (merged - attached).abs().max().item()
        print(f"| {str(dtype).removeprefix('torch.')} | {gap:.2g} | {change:.2g} |")


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a new process, because a child's peak memory includes its parent's size."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def read_all(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def main() -> None:
    arguments = parse_arguments()
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work, prefix="transplant-") as folder:
        work = Path(folder)
        everyone = contenders(arguments.work or work, mergekit=arguments.with_mergekit)
        alone = {name: everyone[name] for name in ("cp", "cp, then fsync", "transplant.py")}
        bare = timed([sys.executable, "-c", "pass"])[1]
        print(f"{len(os.sched_getaffinity(0))} cores; an empty interpreter takes {bare:.2f} GB\n")
        for part in (4, 2, 1):
            model = work / "model"
            size = elsewhere(make_model, model, arguments.hidden, arguments.gigabytes / part)
            patches = [work / f"patch{index}" for index in range(4)]
            for index, patch in enumerate(patches):
                elsewhere(make_patch, patch, model, index)
            read_all(model)
            kept = work / "ours"

            def compare(name: str, output: Path, kept: Path = kept) -> None:
                if name == "transplant.py":
                    (output / "0").rename(kept)
                elif name.startswith(("PEFT", "mergekit")):
                    found = elsewhere(differences, kept, output)
                    print(f"transplant.py against {name}: {found}\n")

            print(f"## {size / 1e9:.2f} GB, one patch\n")
            runners, inspect = (everyone, compare) if part == 1 else (alone, lambda *_: None)
            repetitions = arguments.repetitions
            taken = race(runners, model, patches[:1], work, repetitions, inspect)
            report(taken, size)
            shutil.rmtree(kept, ignore_errors=True)
            if part == 4:
                for count in (2, 4):
                    print(f"\n## {size / 1e9:.2f} GB, {count} patches, {count} checkpoints\n")
                    report(race(alone, model, patches[:count], work, repetitions), size)
            for path in (model, *patches, work / "bare"):
                shutil.rmtree(path, ignore_errors=True)
            print(flush=True)
        print("## Logits\n")
        elsewhere(gaps)


if __name__ == "__main__":
    main()
