"""Scoring: lm-eval's own evaluation of a version, un-patched and with each patch on it.

The version is loaded once and adapters are switched, which gives what
`lm_eval --model hf --model_args pretrained=…,peft=…` gives for each.
"""

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import handle_non_serializable
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from portllm import merging, ports

log = logging.getLogger(__name__)

# lm-eval's own default seeds.
RANDOM_SEED, OTHER_SEED = 0, 1234
ADAPTER = "patch"


@dataclass(frozen=True)
class Settings:
    """How a task is scored; what moves a score is all here."""

    few_shot: int = 0
    limit: int | None = None
    batch_size: int = 32
    dtype: str = "auto"
    max_length: int | None = None
    bootstrap_iterations: int = 1000
    allow_unsafe_code: bool = False


@dataclass(frozen=True)
class Result:
    """Metrics by lm-eval's name, filter included, and one row per item and filter."""

    metrics: dict[str, dict[str, float | int | None]]
    samples: list[dict[str, Any]]


def load_version(directory: Path, dtype: str) -> tuple[Any, Any]:
    """Load a version's model, on the GPU where there is one, and its tokenizer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device)
    model.eval()
    return model, AutoTokenizer.from_pretrained(directory)


@contextmanager
def patched(model: Any, adapter: Path) -> Iterator[Any]:
    """The model with an adapter attached to it; it is as before when the block ends.

    A port that is no adapter is added to the model's weights for as long.
    """
    if ports.is_dense(adapter):
        edits = merging.edits_of_port(ports.read(adapter))
        with merging.applied(dict(model.named_parameters()), edits):
            yield model
        return
    wrapped = PeftModel.from_pretrained(model, str(adapter), adapter_name=ADAPTER)
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()


def _seed() -> None:
    random.seed(RANDOM_SEED)
    numpy.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, numpy.generic) else value


def _metrics(results: dict[str, Any], count: int) -> dict[str, dict[str, float | int | None]]:
    found = {}
    for name, value in results.items():
        metric, _, variant = name.partition(",")
        if not variant or metric.endswith("_stderr"):
            continue
        stderr = results.get(f"{metric}_stderr,{variant}")
        numeric = isinstance(stderr, int | float | numpy.number)
        found[name] = {
            "value": float(_plain(value)),
            "stderr": float(_plain(stderr)) if numeric else None,
            "n": count,
        }
    return found


def evaluate(model: Any, tokenizer: Any, task: ConfigurableTask, settings: Settings) -> Result:
    """Score a model on a task as lm-eval's command line does."""
    _seed()
    # As the command line does it: a task that sets zero examples keeps them.
    if task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=settings.few_shot)
    task.set_fewshot_seed(seed=OTHER_SEED)
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )
    name = task.config.task
    output = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        limit=settings.limit,
        bootstrap_iters=settings.bootstrap_iterations,
        log_samples=True,
        confirm_run_unsafe_code=settings.allow_unsafe_code,
    )
    samples = output["samples"][name]
    count = len({sample["doc_id"] for sample in samples})
    return Result(_metrics(output["results"][name], count), [_sample(row) for row in samples])


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    # As lm-eval itself writes them, less the document: its hash tells which it was.
    kept = ("doc_id", "filter", "target", "resps", "filtered_resps", "doc_hash", "prompt_hash")
    values = {metric: row[metric] for metric in row["metrics"]}
    sample = {**{name: row[name] for name in kept}, "metrics": values}
    return json.loads(json.dumps(sample, default=handle_non_serializable, ensure_ascii=False))


def score(
    model: Any,
    tokenizer: Any,
    task: ConfigurableTask,
    settings: Settings,
    *,
    adapter: Path | None = None,
) -> Result:
    """Score a version by itself or with an adapter on it; the model is left as it was."""
    if adapter is None:
        return evaluate(model, tokenizer, task, settings)
    with patched(model, adapter) as wrapped:
        return evaluate(wrapped, tokenizer, task, settings)
