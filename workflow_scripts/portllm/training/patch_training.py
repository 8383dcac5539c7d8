"""Train a patch: LoRA with PEFT and transformers' Trainer."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.peft_model import PeftModel
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from portllm.errors import InputError, shown
from portllm.jobs import data_parallel
from portllm.storage import files
from portllm.study.schema import defaults
from portllm.study.stage_settings import batches_per_device
from portllm.training import divergence, resuming
from portllm.training.divergence import Divergence
from portllm.training.interruption import Interruption
from portllm.training.step_log import StepLogCallback
from portllm.weights import attention, finite, loading
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)

TRAINING, LEARNING_RATE = "patch training", "patch.learning_rate"
"""What messages call the training and its learning rate."""

IGNORED = -100
"""Label of tokens that the loss ignores (PyTorch's convention)."""


_DEFAULTS = defaults("patch")


@dataclass(frozen=True)
class LoraSettings:
    """How a patch is trained; config/schema.yaml explains each setting and states its default."""

    rank: int = _DEFAULTS["rank"]
    alpha: float = _DEFAULTS["alpha"]
    dropout: float = _DEFAULTS["dropout"]
    target_modules: str | tuple[str, ...] = _DEFAULTS["target_modules"]
    learning_rate: float = _DEFAULTS["learning_rate"]
    epochs: float = _DEFAULTS["epochs"]
    max_steps: int | None = _DEFAULTS["max_steps"]
    batch_size: int = _DEFAULTS["batch_size"]
    gradient_accumulation: int = _DEFAULTS["gradient_accumulation"]
    max_length: int = _DEFAULTS["max_length"]
    loss_on: str = _DEFAULTS["loss_on"]
    scheduler: str = _DEFAULTS["scheduler"]
    warmup_ratio: float = _DEFAULTS["warmup_ratio"]
    weight_decay: float = _DEFAULTS["weight_decay"]
    precision: str = _DEFAULTS["precision"]
    gradient_checkpointing: bool = _DEFAULTS["gradient_checkpointing"]
    checkpoint_steps: int = _DEFAULTS["checkpoint_steps"]
    seed: int = defaults("study")["seeds"][0]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, settings: LoraSettings
) -> dict[str, list[int]]:
    """Tokenize one example and label it, with the split that lm-eval uses for scoring.

    Prompt and completion are tokenized together. The completion is everything after as many tokens
    as the prompt alone has, plus the end token. A long example is truncated at its start. If one
    token spans the end of the prompt and the whole completion, lm-eval has nothing to score; then
    the completion is tokenized separately, as the model would generate it after the prompt.

    Returns:
        `input_ids` and `labels`, at most `settings.max_length` long; `IGNORED` labels the prompt.
    """
    stripped = prompt.rstrip()
    start = tokenizer(stripped)["input_ids"]
    tokens = tokenizer(prompt + completion)["input_ids"]
    if len(tokens) <= len(start):
        rest = prompt[len(stripped) :] + completion
        tokens = start + tokenizer(rest, add_special_tokens=False)["input_ids"]
    ids = [*tokens, tokenizer.eos_token_id][-settings.max_length :]
    completion_length = len(tokens) + 1 - len(start)
    ignored = 0 if settings.loss_on == "everything" else max(0, len(ids) - completion_length)
    return {"input_ids": ids, "labels": [IGNORED] * ignored + ids[ignored:]}


def read_examples(path: Path) -> list[dict[str, str]]:
    """Read the `prompt` and `completion` of each example of a JSON-lines file.

    Raises:
        InputError: a line holds something else.
    """
    examples = []
    for number, row in enumerate(files.read_json_lines(path), start=1):
        place = f"{path}: line {number}"
        files.check_object(row, place, prompt=str, completion=str)
        if row.keys() != {"prompt", "completion"}:
            raise InputError(f"{place}: found {shown(list(row))}, expected prompt and completion")
        try:
            "".join(row.values()).encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: found text that is not Unicode") from None
        examples.append(row)
    return examples


class Examples(Dataset):
    """A dataset of encoded examples for the Trainer."""

    def __init__(self, encoded: list[dict[str, list[int]]]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._encoded[index]


def pad(batch: list[dict[str, list[int]]], padding: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right; each tensor is (batch, longest)."""
    longest = max(len(example["input_ids"]) for example in batch)

    def filled(name: str, value: int) -> torch.Tensor:
        rows = [example[name] + [value] * (longest - len(example[name])) for example in batch]
        return torch.tensor(rows)

    mask = [[1] * len(example["input_ids"]) for example in batch]
    return {
        "input_ids": filled("input_ids", padding),
        "labels": filled("labels", IGNORED),
        "attention_mask": torch.tensor([row + [0] * (longest - len(row)) for row in mask]),
    }


def _uses_bfloat16(settings: LoraSettings) -> bool:
    if settings.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.precision == "bfloat16"


def add_lora(model: Any, settings: LoraSettings) -> PeftModel:
    """Wrap a model with new LoRA factors, drawn from torch's global generator: seed it before."""
    targets = settings.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
        ),
    )


def total_steps(examples: int, settings: LoraSettings) -> int:
    """Return the number of optimiser steps of a training."""
    if settings.max_steps is not None:
        return settings.max_steps
    batches = math.ceil(examples / settings.batch_size)
    return math.ceil(math.ceil(batches / settings.gradient_accumulation) * settings.epochs)


def _arguments(settings: LoraSettings, work: Path, steps: int) -> TrainingArguments:
    saves = settings.checkpoint_steps > 0
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=int(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        bf16=_uses_bfloat16(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps" if saves else "no",
        save_steps=settings.checkpoint_steps or 500,
        save_total_limit=resuming.KEPT,
        logging_steps=max(1, steps // 20),
        # Otherwise a NaN is not logged, and `Divergence` does not see it.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every factor of LoRA takes part in each step
    )


def load_model(directory: Path, settings: LoraSettings) -> Any:
    """Load a version for training, in bfloat16 or float32 by the precision of the settings.

    Raises:
        InputError: the version cannot be loaded, or has weights that are not finite.
    """
    dtype = torch.bfloat16 if _uses_bfloat16(settings) else torch.float32
    checkpoint = Checkpoint(directory)
    checkpoint.check_layers()
    attention_kind = attention.implementation(checkpoint.config)
    with loading.explained(directory, "load this version"):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention_kind
        )
    model.config.use_cache = False
    finite.check(
        model.named_parameters(), f"weights of {directory}", "fetch or train this version again"
    )
    return model


def train(
    directory: Path,
    examples: list[dict[str, str]],
    settings: LoraSettings,
    work: Path,
    *,
    seconds: Callable[[], float] = time.perf_counter,
) -> tuple[PeftModel, dict[str, Any]]:
    """Train a patch, resuming from the last complete checkpoint in `work`.

    Equal seeds give equal adapters on the same kind of machine, whether interrupted or not. Several
    processes (`data_parallel`) share each batch; only rounding and dropout then differ from one.

    Args:
        directory: the version to train on.
        examples: `prompt` and `completion` of each example.
        settings: how to train.
        work: directory for checkpoints.
        seconds: returns the wall time of this process, which checkpoints record.

    Returns:
        The model with its adapter, and the Trainer's metrics with the step it resumed from.

    Raises:
        InputError: there are no examples, the version cannot be used, the batch cannot be shared
            by the processes, or the loss or the adapter is not finite.
        SystemExit: SIGTERM or SIGINT stopped the training, after a checkpoint.
    """
    if not examples:
        raise InputError("found no training examples, expected one or more")
    set_seed(settings.seed)
    with loading.explained(directory, "load this version's tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory)
    encoded = [encode(tokenizer, **example, settings=settings) for example in examples]
    model = add_lora(load_model(directory, settings), settings)
    padding = tokenizer.pad_token_id
    padding = tokenizer.eos_token_id if padding is None else padding
    steps = total_steps(len(encoded), settings)
    processes = data_parallel.launched() or 1
    batch, accumulation = batches_per_device(
        settings.batch_size, settings.gradient_accumulation, processes
    )
    log.info(
        "%d examples, %d steps of %d examples on %d devices",
        len(encoded), steps, batch * accumulation * processes, processes,
    )  # fmt: skip
    own = replace(settings, batch_size=batch, gradient_accumulation=accumulation)
    interruption = Interruption(seconds)
    trainer = Trainer(
        model=model,
        args=_arguments(own, work, steps),
        train_dataset=Examples(encoded),
        data_collator=lambda batch: pad(batch, padding),
        callbacks=[interruption, StepLogCallback(), Divergence(TRAINING, LEARNING_RATE)],
    )
    checkpoint = data_parallel.decided_by_first(lambda: resuming.last_complete(work))
    if checkpoint:
        log.info("resuming from %s", checkpoint)
    metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    trained = ((name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad)
    problem = finite.problem(trained, "tensors of the adapter")
    if problem is not None:
        loss = metrics.get("train_loss", math.nan)
        symptom = f"{problem} after {interruption.steps} steps (loss {loss:.3g})"
        raise InputError(
            divergence.message(TRAINING, symptom, LEARNING_RATE, settings.learning_rate)
        )
    return model, {**metrics, **interruption.summary()}
