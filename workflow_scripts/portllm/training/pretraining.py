"""Pretrain a small causal language model from scratch: tokenizer, architecture, weights.

Such models are for demonstrations and tests. Architectures come from transformers by `model_type`,
so the result is an ordinary checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from logging import Logger
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from portllm.errors import InputError
from portllm.training import divergence
from portllm.training.step_log import StepLog
from portllm.weights import finite, loading

BEGINNING, END, PADDING = "<s>", "</s>", "<pad>"
GRADIENT_NORM_LIMIT = 1.0


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that round-trips any text.

    Encoding adds the beginning token, as for Llama and Mistral, but no end token. Words include the
    space before them, so a completion that starts with a space does not change the tokens of its
    prompt.

    Args:
        texts: the corpus.
        vocabulary_size: number of tokens, including 256 bytes and three special tokens. The result
            has fewer if the texts have no more repeated pairs.

    Raises:
        InputError: `vocabulary_size` is too small for the bytes and the special tokens.
    """
    special_tokens = [BEGINNING, END, PADDING]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(special_tokens)
    if vocabulary_size < smallest:
        raise InputError(f"vocabulary_size is {vocabulary_size}, expected at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGINNING} $A",
        pair=f"{BEGINNING} $A {BEGINNING} $B",
        special_tokens=[(BEGINNING, tokenizer.token_to_id(BEGINNING))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGINNING,
        eos_token=END,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def build_model(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a model with random float32 weights for a tokenizer.

    Weights are drawn from torch's global generator: seed it before the call.

    Args:
        config: `model_type`, and any field of transformers' configuration of that architecture.
        tokenizer: decides the vocabulary size and the ids of special tokens.

    Raises:
        InputError: `model_type` is missing, transformers refuses the configuration, or it has a
            field that the tokenizer decides.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise InputError("base.from_scratch.config: the key 'model_type' is missing")
    from_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clash = sorted(fields.keys() & from_tokenizer.keys())
    if clash:
        raise InputError(
            f"base.from_scratch.config: remove {', '.join(clash)}: the tokenizer decides it"
        )
    with loading.explained("base.from_scratch.config", "build this model"):
        model_config = AutoConfig.for_model(model_type, **fields, **from_tokenizer)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> torch.Tensor:
    """Concatenate the encoded texts, with an end token after each, and cut them into blocks.

    Returns:
        Token ids, (blocks, sequence_length). An incomplete last block is dropped.

    Raises:
        InputError: the texts are too short for one block.
    """
    stream: list[int] = []
    for text in texts:
        stream.extend(tokenizer.encode(text))
        stream.append(tokenizer.eos_token_id)
    blocks = len(stream) // sequence_length
    if blocks == 0:
        raise InputError(
            f"found {len(stream)} tokens of text, expected at least one block of {sequence_length}"
        )
    return torch.tensor(stream[: blocks * sequence_length]).view(blocks, sequence_length)


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak learning rate at `step` (from 0): linear warm-up, cosine."""
    warmup = int(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(
    block_count: int, steps: int, batch_size: int, generator: torch.Generator
) -> Iterable[torch.Tensor]:
    """Yield `steps` batches of block indices, with a new order of the blocks in every epoch."""
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(block_count, generator=generator)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    warmup_fraction: float,
    seed: int,
    log: Logger,
) -> list[float]:
    """Train all weights in place with AdamW on packed text, on the model's own device.

    Equal seeds and texts give equal weights on the same kind of machine.

    Args:
        model: the model, whose weights are changed.
        tokenizer: its tokenizer.
        texts: the corpus.
        steps: number of optimiser steps.
        batch_size: blocks per step.
        sequence_length: tokens per block.
        learning_rate: peak learning rate.
        warmup_fraction: share of the steps before the peak.
        seed: seed of the order of blocks, and of dropout.
        log: where progress is reported.

    Returns:
        The loss of every step, in nats per token.

    Raises:
        InputError: the texts do not fill one block, or the loss or a weight is not finite.
    """
    blocks = pack(texts, tokenizer, sequence_length)
    log.info("%d blocks of %d tokens", len(blocks), sequence_length)
    torch.manual_seed(seed)  # for architectures with dropout
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, warmup_fraction)
    )

    def diverged(symptom: str) -> InputError:
        return InputError(
            divergence.message(
                "pretraining", symptom, "base.from_scratch.learning_rate", learning_rate
            )
        )

    losses: list[float] = []
    step_log = StepLog(steps, logger=log)
    model.train()
    for step, indices in enumerate(_batches(len(blocks), steps, batch_size, generator), start=1):
        batch = blocks[indices].to(model.device)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        step_log.update(step, losses[-1])
        if not math.isfinite(losses[-1]):
            raise diverged(f"the loss is {losses[-1]} at step {step} of {steps}")
    problem = finite.problem(model.named_parameters(), "weights")
    if problem is not None:
        raise diverged(f"{problem} after {steps} steps (loss {losses[-1]:.3g})")
    model.eval()
    return losses
