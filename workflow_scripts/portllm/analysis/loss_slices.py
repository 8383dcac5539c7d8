"""Measure the loss along the straight line from a ported patch to the retrained patch.

The points are θ′ + (1−t)·Δθ + t·Δθ′: t = 0 is the port and t = 1 the re-fine-tuned model. A loss
barrier between them means that they lie in different basins (Goodfellow, Vinyals and Saxe 2015;
Frankle et al. 2020). The line interpolates weights, i.e. products of LoRA factors. (The follow-up,
arXiv 2607.20301, interpolates the factors.) Both adapters are attached to one model and only their
scalings change, which is exact.

The text is the documents that lm-eval scores, with their gold completions, in the format of
training. Neither patch was trained on them, and nothing is selected by this loss.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from portllm.data import tasks
from portllm.errors import InputError
from portllm.training import patch_training

log = logging.getLogger(__name__)

CARRIED, RETRAINED = "carried", "retrained"

Encoded = list[dict[str, list[int]]]


@dataclass(frozen=True)
class Loss:
    """Cross-entropy in nats per completion token: mean over items and its standard error."""

    loss: float
    stderr: float | None
    n: int


def positions(first: float, last: float, points: int) -> list[float]:
    """Return evenly spaced values of t, plus 0 and 1, which are models of the study."""
    step = (last - first) / max(points - 1, 1)
    return sorted({0.0, 1.0, *(round(first + step * index, 6) for index in range(points))})


def held_out(task: ConfigurableTask, limit: int | None) -> list[dict[str, str]]:
    """List `prompt` and gold `completion` of the first `limit` documents that lm-eval scores."""
    return [tasks.training_example(task, doc) for doc in islice(task.eval_docs, limit)]


def encode(tokenizer: Any, examples: Iterable[dict[str, str]], max_length: int) -> Encoded:
    """Tokenize examples as in training, with the loss on the completion only.

    Raises:
        InputError: there are no examples.
    """
    settings = patch_training.LoraSettings(max_length=max_length, loss_on="completion")
    encoded = [
        patch_training.encode(tokenizer, **example, settings=settings) for example in examples
    ]
    if not encoded:
        raise InputError("the task has no documents to measure the loss on")
    return encoded


def item_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy per labelled token of each item, (batch,), in nats.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens), -100 where a token has no label.
    """
    shifted = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        shifted,
        ignore_index=patch_training.IGNORED,
        reduction="none",
    )
    counted = (shifted != patch_training.IGNORED).sum(dim=1)
    return losses.sum(dim=1) / counted


@torch.inference_mode()
def mean_loss(model: Any, encoded: Encoded, padding: int, batch_size: int) -> Loss:
    """Return the mean loss of a model over encoded items; padding tokens are ignored.

    Args:
        model: a causal language model.
        encoded: items as `encode` returns them.
        padding: token id for padding, on the right.
        batch_size: items per batch.

    Raises:
        InputError: the loss of an item is not finite.
    """
    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(encoded), batch_size):
        batch = patch_training.pad(encoded[start : start + batch_size], padding)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        losses.append(item_losses(model(**batch, use_cache=False).logits, labels).double().cpu())
    values = torch.cat(losses)
    invalid = int((~torch.isfinite(values)).sum())
    if invalid:
        raise InputError(
            f"the loss of {invalid} of {len(values)} items is not finite; the version or a patch "
            "is damaged, or overflows in scoring.dtype"
        )
    count = len(values)
    stderr = float(values.std()) / math.sqrt(count) if count > 1 else None
    return Loss(float(values.mean()), stderr, count)


def _layers(model: PeftModel) -> Iterator[LoraLayer]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def between(model: Any, carried: Path, retrained: Path) -> Iterator[Any]:
    """Attach both adapters and yield a function that moves the model to the point t of the line.

    The function returns the model to call. Both adapters are removed when the block ends.
    """
    wrapped = PeftModel.from_pretrained(model, str(carried), adapter_name=CARRIED)
    wrapped.load_adapter(str(retrained), adapter_name=RETRAINED)
    # PeftModel accepts one active adapter; its LoRA model accepts several and sums them.
    wrapped.base_model.set_adapter([CARRIED, RETRAINED], inference_mode=True)
    wrapped.eval()
    whole = [(layer, dict(layer.scaling)) for layer in _layers(wrapped)]

    def at(t: float) -> Any:
        shares = {CARRIED: 1.0 - t, RETRAINED: t}
        for layer, scaling in whole:
            for name, share in shares.items():
                if name in scaling:
                    layer.scaling[name] = share * scaling[name]
        return wrapped

    try:
        yield at
    finally:
        wrapped.unload()


def loss_slice(
    model: Any,
    encoded: Encoded,
    *,
    carried: Path,
    retrained: Path,
    at: list[float],
    padding: int,
    batch_size: int,
) -> dict[str, Any]:
    """Measure the loss of the un-patched model and at each point of the line.

    Args:
        model: the version, without adapters.
        encoded: items as `encode` returns them.
        carried: directory of the ported patch (t = 0).
        retrained: directory of the retrained patch (t = 1).
        at: values of t, with 0 and 1 among them.
        padding: token id for padding.
        batch_size: items per batch.
    """
    un_patched = mean_loss(model, encoded, padding, batch_size)
    points = []
    with between(model, carried, retrained) as set_to:
        for t in at:
            try:
                loss = mean_loss(set_to(t), encoded, padding, batch_size)
            except InputError as error:
                raise InputError(f"{carried} to {retrained}, t = {t:g}: {error}") from None
            log.info("t = %g: loss %.4f nats per token", t, loss.loss)
            points.append({"t": t, **asdict(loss)})
    return {"un_patched": asdict(un_patched), "points": points, "barrier": barrier(points)}


def barrier(points: list[dict[str, Any]]) -> float:
    """Return the largest excess of the loss over the line between the losses at t = 0 and t = 1.

    The error barrier of Frankle et al. (2020), for losses; 0 if there is none.
    """
    ends = {point["t"]: point["loss"] for point in points}
    inside = [point for point in points if 0 <= point["t"] <= 1]
    chord = [(1 - point["t"]) * ends[0.0] + point["t"] * ends[1.0] for point in inside]
    return max(point["loss"] - line for point, line in zip(inside, chord, strict=True))
