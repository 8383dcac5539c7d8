"""Models with random weights at real shapes, and stage programs that run on a leased device."""

import gc
import importlib.metadata
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from conftest import PROJECT
from gpu.plugin import ON_CPU
from transformers import AutoConfig, AutoModelForCausalLM

from portllm.storage import files, manifests
from portllm.study import schema

REAL = ("mistral-7b-v0.1", "llama-3.1-8b", "gemma-2-9b")
"""Files of resources/models."""
# The widths of Llama-2-7B in two layers: 0.67 billion parameters, which one device trains in full.
SMALL = {"small": ("llama-2-7b", {"num_hidden_layers": 2})}
SIZES: dict[str, dict[str, Any]] = {
    "gpu": {"dtype": torch.bfloat16, "batch": 16, "lengths": (256, 1000), "steps": 400},
    "tiny": {"dtype": torch.float32, "batch": 4, "lengths": (24, 48), "steps": 60},
}
SIZE = SIZES["tiny" if ON_CPU else "gpu"]


def model_config(name: str) -> dict[str, Any]:
    """Return the configuration of a model; on a CPU, a tiny one of the same type."""
    source, more = SMALL.get(name, (name, {}))
    config = files.read_json(PROJECT / "resources" / "models" / f"{source}.json") | more
    config.pop("hub")
    if ON_CPU:
        return tiny.config(config["model_type"], max_position_embeddings=2048, vocab_size=512)
    return config


def save_random_version(directory: Path, name: str, dtype: torch.dtype) -> Path:
    """Write a model with random weights, drawn on the GPU, and a tokenizer."""
    words = tiny.tokenizer()
    ids = {key: getattr(words, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(**model_config(name) | ids)
    torch.manual_seed(0)
    with torch.device("cpu" if ON_CPU else "cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.dtype = dtype
    model.save_pretrained(directory, max_shard_size="5GB")
    words.save_pretrained(directory)
    del model
    free_device()
    return directory


def free_device() -> None:
    """Return this process's cached device memory, so that jobs can use it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def text(words: int, source: random.Random) -> str:
    """Return random words; each is at least one token."""
    vocabulary = sorted(set(" ".join(tiny.SENTENCES).split()))
    return " ".join(source.choices(vocabulary, k=words))


def job_words(environment: str, program: str, *words: Any) -> list[str]:
    """Return the command line of a stage's program on one leased device, as its rule has it."""
    scripts = PROJECT / "workflow_scripts"
    python = PROJECT / ".venvs" / environment / "bin" / "python"
    wrapper = [sys.executable, scripts / "run_job.py", 1, "--", python, scripts / program]
    return [str(word) for word in (*wrapper, *words)]


def job(environment: str, program: str, *words: Any) -> subprocess.CompletedProcess[str]:
    """Run a stage's program on one leased device."""
    return subprocess.run(job_words(environment, program, *words), capture_output=True, text=True)


def finished(
    environment: str, program: str, *words: Any, output: Path, option: str = "--output"
) -> dict[str, Any]:
    """Run a job that must succeed, and return the manifest of its output."""
    done = job(environment, program, *words, option, output)
    assert done.returncode == 0, done.stderr[-3000:]
    return files.read_json(output / manifests.NAME)


def peak_device_bytes(manifest: dict[str, Any]) -> int:
    """Return the peak memory of a job's device; 0 on a CPU."""
    peaks = manifest["cost"]["peak_device_bytes"]
    assert len(peaks) == (0 if ON_CPU else 1), manifest["cost"]
    return max(peaks, default=0)


def write_training_data(directory: Path, examples: int) -> Path:
    """Write a task's training examples, which all fill the length that a patch is trained at."""
    source = random.Random(0)
    length = schema.defaults("patch")["max_length"]
    rows = [{"prompt": text(length, source), "completion": " yes"} for _ in range(examples)]
    directory.mkdir(parents=True)
    files.write_json_lines(directory / "train.jsonl", rows)
    return directory


def driver_version() -> str:
    """Return the version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]


def device_description() -> dict[str, Any]:
    """Return the device, its driver and the versions of what runs on it."""
    packages = ("torch", "transformers", "peft", "accelerate", "lm_eval")
    on_gpu = torch.cuda.is_available() and not ON_CPU
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        "driver": driver_version() if on_gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
