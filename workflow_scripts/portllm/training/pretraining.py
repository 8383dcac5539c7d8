"""Train a small causal language model from nothing: tokenizer, architecture, weights.

The models are toys for demonstrations and tests. Architectures come from transformers by their
`model_type`, so that whatever loads the result meets an ordinary checkpoint.
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

BEGINNING, END, PADDING = "<s>", "</s>", "<pad>"
GRADIENT_NORM_LIMIT = 1.0
REPORTS_PER_RUN = 10


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that round-trips any text.

    `vocabulary_size` counts tokens, the 256 bytes and three special tokens included; fewer
    result when the texts hold no more repeated pairs. Encoding starts with the beginning token,
    as it does for Llama and Mistral, and never adds the end token. Words keep the space before
    them, so a completion that starts with a space leaves the tokens of its prompt alone.

    Raises ValueError when `vocabulary_size` cannot hold the bytes and the special tokens.
    """
    special_tokens = [BEGINNING, END, PADDING]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(special_tokens)
    if vocabulary_size < smallest:
        raise ValueError(f"vocabulary_size is {vocabulary_size}, expected at least {smallest}")
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
    """Build a model with fresh float32 weights that fits the tokenizer.

    `config` holds `model_type` (as transformers names it) and any field of that architecture's
    configuration. The vocabulary and the ids of the special tokens come from the tokenizer.
    The weights are drawn from torch's global generator: seed it before the call.

    Raises ValueError when `model_type` is missing, unknown to transformers, or when `config`
    names a field that the tokenizer decides.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ValueError("the model's configuration has no model_type")
    from_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clash = sorted(fields.keys() & from_tokenizer.keys())
    if clash:
        raise ValueError(f"the tokenizer decides {', '.join(clash)}: leave it out of the config")
    model_config = AutoConfig.for_model(model_type, **fields, **from_tokenizer)
    return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> torch.Tensor:
    """Join the encoded texts, an end token after each, and cut them into equal blocks.

    Returns token ids of shape (blocks, sequence_length); what does not fill the last block is
    dropped. Raises ValueError when the texts are too short for one block.
    """
    stream: list[int] = []
    for text in texts:
        stream.extend(tokenizer.encode(text))
        stream.append(tokenizer.eos_token_id)
    blocks = len(stream) // sequence_length
    if blocks == 0:
        raise ValueError(f"{len(stream)} tokens of text do not fill {sequence_length} tokens")
    return torch.tensor(stream[: blocks * sequence_length]).view(blocks, sequence_length)


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then cosine to 0."""
    warmup = int(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(
    block_count: int, steps: int, batch_size: int, generator: torch.Generator
) -> Iterable[torch.Tensor]:
    """Yield `steps` batches of block indices, going through all blocks in a new order each time."""
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

    `batch_size` counts blocks of `sequence_length` tokens, `learning_rate` is the peak,
    `warmup_fraction` is the share of the steps before it. Equal seeds and texts give equal
    weights on one kind of machine. Returns the loss of every step in nats per token.

    Raises ValueError when the texts do not fill one block.
    """
    blocks = pack(texts, tokenizer, sequence_length)
    log.info("%d blocks of %d tokens", len(blocks), sequence_length)
    torch.manual_seed(seed)  # dropout, where an architecture has any
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, warmup_fraction)
    )
    losses: list[float] = []
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
        if step % max(1, steps // REPORTS_PER_RUN) == 0:
            log.info("step %d of %d: loss %.3f", step, steps, losses[-1])
    model.eval()
    return losses
