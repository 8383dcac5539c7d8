"""Merge edits into checkpoints, and into the weights of a loaded model."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portllm.errors import InputError, nearest
from portllm.storage.files import write_json
from portllm.transplant import streaming
from portllm.transplant.blocks import Targets, sum_dtype
from portllm.transplant.companions import copy_companions, list_companions
from portllm.transplant.edits import Edits, edits_of
from portllm.weights import checkpoints, finite
from portllm.weights.adapters import Adapter
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)


@contextmanager
@torch.no_grad()
def applied(weights: Mapping[str, Tensor], edits: Edits) -> Iterator[None]:
    """Edit the weights of a loaded model, on any device, until the block ends.

    The original weights are kept in host memory and put back bit by bit. Raises InputError for an
    edit of a weight that the model does not have, and for a result that is not finite.
    """
    for name in edits:
        if name not in weights:
            raise InputError(f"the loaded model has no weight {name}; {nearest(name, weights)}")
    before = {name: weights[name].detach().to("cpu", copy=True) for name in edits}
    try:
        for name, edit in edits.items():
            dtype = sum_dtype(before[name].dtype)
            wide = before[name].to(dtype, copy=True)
            edit.prepared(dtype)(wide.view(len(wide), -1), 0)
            sum_ = wide.to(before[name].dtype)
            if not finite.is_finite(sum_):
                raise InputError(f"{name}: the sum with the patch is NaN or infinite")
            weights[name].copy_(sum_)
        yield
    finally:
        for name, original in before.items():
            weights[name].copy_(original)


def _targets(model: Checkpoint, edits: Edits) -> Targets:
    """Return the weights written for each source weight. A tied output layer may get its own.

    With LoRA on a tied embedding, the output layer of the adapted model is still the original
    embedding (and the other way round). A merged checkpoint therefore stores both.
    """
    targets: Targets = {name: [(name, edit)] for name, edit in edits.items()}
    embedding = model.tied_embedding
    if embedding is not None and targets.keys() & {embedding, checkpoints.HEAD}:
        both = (embedding, checkpoints.HEAD)
        targets.pop(checkpoints.HEAD, None)
        targets[embedding] = [(name, edits.get(name)) for name in both]
    return targets


def plan(model: Checkpoint, edits: Edits) -> streaming.MergePlan:
    """Return what a merge would write, from headers alone."""
    list_companions(model.directory)  # raises for links out of the directory
    return streaming.plan(model, _targets(model, edits))


def merge_many(
    model: Checkpoint, outputs: Mapping[Path, Edits], **options: Any
) -> streaming.Written:
    """Write the checkpoint `model` with edits into each output directory, in one pass over it.

    The directories exist and are empty. Options, result and errors are those of `streaming.write`.
    """
    list_companions(model.directory)  # raises before hours of merging
    targets = {directory: _targets(model, edits) for directory, edits in outputs.items()}
    written = streaming.write(model, targets, **options)
    for directory, merged in targets.items():
        copy_companions(model.directory, directory)
        if any(len(results) > 1 for results in merged.values()):
            config = {**model.config, "tie_word_embeddings": False}
            write_json(directory / checkpoints.CONFIG, config)
            log.warning(
                "%s: the patch changes the embedding, which is tied to the output layer; the "
                "checkpoint stores both, as an attached patch acts",
                directory,
            )
    return written


def merge(model: Checkpoint, adapter: Adapter, directory: Path) -> None:
    """Write the checkpoint `model` merged with `adapter` into `directory`.

    The caller has checked that the adapter fits.
    """
    merge_many(model, {directory: edits_of(adapter)}, hashed=False)
