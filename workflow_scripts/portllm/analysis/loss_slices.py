"""The loss along the straight line from a carried patch to one that was trained anew.

The points are θ′ + (1−t)·Δθ + t·Δθ′: t = 0 is the port, t = 1 the re-fine-tuned model, and a
barrier between them would say that they lie in different valleys (Goodfellow, Vinyals and Saxe
2015; Frankle et al. 2020). The line is one of weights: products of LoRA factors are mixed, not the
factors themselves, between which the follow-up (arXiv 2607.20301) interpolates. Both adapters are
attached to one model and only their scalings change, which is exact.

The text is that of the documents that lm-eval scores, each with its gold completion, as the patch
was trained to complete training documents: neither patch has seen them, and nothing is chosen by
this loss.
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
    """Cross-entropy per completion token, in nats: mean over items and its standard error."""

    loss: float
    stderr: float | None
    n: int


def positions(first: float, last: float, points: int) -> list[float]:
    """Evenly spaced values of t; 0 and 1, which are models of the study, are always among them."""
    step = (last - first) / max(points - 1, 1)
    return sorted({0.0, 1.0, *(round(first + step * index, 6) for index in range(points))})


def held_out(task: ConfigurableTask, limit: int | None) -> list[dict[str, str]]:
    """Prompt and gold completion of the first `limit` documents that lm-eval scores."""
    return [tasks.training_example(task, doc) for doc in islice(task.eval_docs, limit)]


def encode(tokenizer: Any, examples: Iterable[dict[str, str]], max_length: int) -> Encoded:
    """Token ids and labels of examples as in training; the loss is on the completion alone.

    Raises InputError where there are none.
    """
    settings = patch_training.LoraSettings(max_length=max_length, loss_on="completion")
    found = [patch_training.encode(tokenizer, **example, settings=settings) for example in examples]
    if not found:
        raise InputError("the task has no documents to measure the loss on")
    return found


def item_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per labelled token of each item, from logits (batch, tokens, words)."""
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
    """Mean loss of a model over encoded items. Padding is on the right and counts nothing."""
    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(encoded), batch_size):
        batch = patch_training.pad(encoded[start : start + batch_size], padding)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        losses.append(item_losses(model(**batch, use_cache=False).logits, labels).double().cpu())
    values = torch.cat(losses)
    count = len(values)
    stderr = float(values.std()) / math.sqrt(count) if count > 1 else None
    return Loss(float(values.mean()), stderr, count)


def _layers(model: PeftModel) -> Iterator[LoraLayer]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def between(model: Any, carried: Path, retrained: Path) -> Iterator[Any]:
    """Yield a function that sets a model, with both adapters attached, to the point t of the line.

    The function returns the model to call. Both adapters are removed when the block ends.
    """
    wrapped = PeftModel.from_pretrained(model, str(carried), adapter_name=CARRIED)
    wrapped.load_adapter(str(retrained), adapter_name=RETRAINED)
    # PeftModel takes one active adapter, the LoRA model below it several, whose changes are summed.
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
    """Loss of the un-patched model and at each point t of the line between two patches on it."""
    un_patched = mean_loss(model, encoded, padding, batch_size)
    points = []
    with between(model, carried, retrained) as set_to:
        for t in at:
            found = mean_loss(set_to(t), encoded, padding, batch_size)
            log.info("t = %g: %.4f nats a token", t, found.loss)
            points.append({"t": t, **asdict(found)})
    return {"un_patched": asdict(un_patched), "points": points, "barrier": barrier(points)}


def barrier(points: list[dict[str, Any]]) -> float:
    """Height of the loss between t = 0 and 1 over the straight line between its ends, at most.

    As Frankle et al. (2020) define the error barrier, for losses; zero where there is none.
    """
    ends = {point["t"]: point["loss"] for point in points}
    inside = [point for point in points if 0 <= point["t"] <= 1]
    chord = [(1 - point["t"]) * ends[0.0] + point["t"] * ends[1.0] for point in inside]
    return max(point["loss"] - line for point, line in zip(inside, chord, strict=True))
