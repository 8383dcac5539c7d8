"""Formulae of what jobs take: memory and disk.

Nothing is loaded. Sizes are bytes, lengths tokens; memory is that of one device without sharding.
In formulae: h hidden size, f the MLP's, L layers, a heads, g key-value heads, d head size, V
vocabulary, P parameters, T trained parameters, r rank, b batch, s length, w bytes of a number in
the job's dtype. tests/unit/planning/test_simulation.py holds them to within 10 % of a simulation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from portllm.planning.architectures import (
    ALL_LINEAR,
    FLOAT32,
    HALF,
    Architecture,
    largest_projection,
    lora_parameters,
    parameters,
    targeted,
)

# Peak of the demo's jobs, whose model is 2 MB: the interpreter and its imports. Measured on CPU,
# results/**/manifest.json, cost.peak_host_bytes, less what the formulae give for the job.
IMPORTS = {
    "pretrain": 600_000_000,
    "patch": 650_000_000,
    "evolve": 900_000_000,
    "score": 590_000_000,
    "transplant": 45_000_000,
    "merge": 235_000_000,
    "movement": 235_000_000,
}
# A merge holds a few blocks of a megabyte for each thread, as read, in float32 and as written.
BLOCKS = 50_000_000
# Attention scores of the backward pass: capped in 16 bits and their softmax in float32.
EAGER_SCORE_BYTES = 6


def activations_of_layer(
    model: Architecture,
    width: int,
    targets: str | Iterable[str] | None = None,
    *,
    mask_bytes: int = 1,
    length: int = 0,
) -> int:
    """Return the bytes per token that a layer keeps for the backward pass.

    Counted as in Korthikanti et al. (arXiv 2205.05198, section 4.1), who give 34·h + 5·a·s for a
    GPT layer in 16 bits. Current decoders differ: gated MLPs and float32 norms keep more, and
    PyTorch's fused attention does not keep the attention matrix.

    - norms: their input in float32, two of 4·h;
    - attention: queries and output, keys and values, 2·w·(a + g)·d;
    - MLP: gate, its activation and up, 3·w·f;
    - eager attention: the capped scores and their softmax, 6·a·s;
    - all weights trained (`targets` None): the norms' normalised rows and outputs, 4·w·h, and the
      inputs of the output projection, w·a·d, and of the down projection, w·f;
    - LoRA: for each target its dropped-out input, w·in (mixed precision casts it), and the
      dropout's mask, one byte an element on a GPU, four on a CPU.

    Within 5 % of the tensors that PyTorch saves (tests/unit/planning/test_estimates.py), without
    the two additional norms of gemma2.
    """
    hidden, inner = model.hidden_size, model.intermediate_size * model.active_experts
    queries, keys = model.heads * model.head_dim, model.key_value_heads * model.head_dim
    total = 2 * FLOAT32 * hidden + 2 * width * (queries + keys) + 3 * width * inner
    total += EAGER_SCORE_BYTES * model.heads * length if model.eager_attention else 0
    if targets is None:
        return total + width * (4 * hidden + queries + inner)
    adapted = sum(target.inner * target.count for target in targeted(model, targets))
    return total + adapted // model.layers * (width + mask_bytes)


@dataclass(frozen=True)
class TrainingMemory:
    """The settings that decide the memory of a training; `targets` None trains all weights.

    `weight_bytes` is what a number takes as it is kept, `width` as it is computed with.
    """

    batch: int
    length: int
    weight_bytes: float
    width: int
    rank: int = 0
    targets: str | tuple[str, ...] | None = None
    checkpointing: bool = False
    optimizer_bytes: float = 8
    mask_bytes: int = 1
    accumulates: bool = False


def trained_parameters(model: Architecture, training: TrainingMemory) -> int:
    """Return the number of parameters that a training changes."""
    if training.targets is None:
        return parameters(model)
    return lora_parameters(model, training.rank, training.targets)


def training_bytes(model: Architecture, training: TrainingMemory) -> dict[str, int]:
    """Return the peak device memory of a training in bytes, by part.

    - weights: P as they are kept (4 bits: half a byte each), LoRA factors T in float32;
    - optimiser: AdamW's two moments, 2·4·T (Rajbhandari et al. 2020, ZeRO, section 3.1), 2·2·T of
      16-bit weights, or 2·T in 8 bits;
    - the larger of two moments. When the loss is computed: all layers' `activations_of_layer` (with
      gradient checkpointing each layer's input, 2·s·b·h·L in 16 bits, Korthikanti et al., section
      5); the logits, s·b·V times `logit_bytes`; copies in 16 bits of weights that are kept in
      float32, w·P; and the gradients, if they accumulate over several batches. At the end of the
      backward pass: the gradients, one per trained parameter as it is kept, and with gradient
      checkpointing the layers' inputs and one layer.
    """
    trained = trained_parameters(model, training)
    lora = training.targets is not None
    tokens = training.batch * training.length
    per_layer = tokens * activations_of_layer(
        model,
        training.width,
        training.targets,
        mask_bytes=training.mask_bytes,
        length=training.length,
    )
    kept = model.layers * per_layer
    if training.checkpointing:
        kept = tokens * model.hidden_size * training.width * model.layers
    logits = tokens * model.vocabulary_size * logit_bytes(model, training.width)
    casts = parameters(model) * training.width if training.weight_bytes > training.width else 0
    gradients = int(trained * (FLOAT32 if lora else training.weight_bytes))
    at_loss = {
        "gradients": gradients if training.accumulates else 0,
        "activations": kept,
        "logits": logits,
        "casts": casts,
    }
    backward = {"activations": kept + per_layer if training.checkpointing else 0}
    last = {"gradients": gradients, **backward}
    return {
        "weights": int(parameters(model) * training.weight_bytes) + lora * FLOAT32 * trained,
        "optimiser": int(trained * training.optimizer_bytes),
        **dict.fromkeys(at_loss, 0),
        **max(at_loss, last, key=lambda parts: sum(parts.values())),
    }


def is_sharded(recipe: dict[str, Any]) -> bool:
    """Return whether a recipe shares weights and optimiser state between devices."""
    return any(recipe.get(key) for key in ("deepspeed", "fsdp", "fsdp_config"))


def sharded(parts: dict[str, int]) -> tuple[int, int]:
    """Split the memory of a training into what devices share and what each has of its own.

    Casts of weights are made and freed layer by layer, and do not count.
    """
    shared = parts["weights"] + parts["gradients"] + parts["optimiser"]
    return shared, parts["activations"] + parts["logits"]


def logit_bytes(model: Architecture, width: int) -> int:
    """Return the bytes that the loss takes for each token and word of the vocabulary.

    The logits, with the result of their cap if they have one, and in float32 the logits and their
    log-softmax, or the log-softmax and its gradient.
    """
    return 2 * FLOAT32 + (2 * width if model.capped_logits else width)


def scoring_bytes(model: Architecture, batch: int, length: int, width: int) -> dict[str, int]:
    """Return the peak memory of scoring in bytes, by part, without a backward pass.

    - weights: P in the scoring dtype;
    - logits: lm-eval's HFLM holds the last batch's log-softmax while it computes the next logits
      and their log-softmax, 3·s·b·V·w;
    - or, if it is more, the moment before: the last log-softmax, the cache with keys and values of
      all layers, 2·L·g·d·w per token, and the largest of one layer (its MLP 4·w·f and states
      2·w·h, or eager scores) and the new logits, twice if they are capped.
    """
    tokens = batch * length
    keys = model.key_value_heads * model.head_dim
    copy = tokens * model.vocabulary_size * width
    inner = model.intermediate_size * model.active_experts
    layer = tokens * width * (4 * inner + 2 * model.hidden_size)
    if model.eager_attention:
        layer = max(layer, tokens * 2 * EAGER_SCORE_BYTES * model.heads * length)
    cache = tokens * 2 * model.layers * keys * width
    weights = {"weights": parameters(model) * width}
    new = copy * (2 if model.capped_logits else 1)
    before = {"activations": max(0, layer - new), "cache": cache, "logits": copy + new}
    at_end = {"activations": 0, "cache": 0, "logits": 3 * copy}
    return weights | max(before, at_end, key=lambda parts: sum(parts.values()))


def loss_bytes(model: Architecture, batch: int, length: int, width: int) -> dict[str, int]:
    """Return the peak memory of measuring a loss in bytes, by part.

    The logits, in float32 too, and their log-softmax, s·b·V·(w + 8), outweigh a layer.
    """
    logits = batch * length * model.vocabulary_size * (width + 2 * FLOAT32)
    return {"weights": parameters(model) * width, "logits": logits}


def transplant_host_bytes(adapter: int) -> int:
    """Return the host memory of a port in bytes: the adapter before and after the method."""
    return IMPORTS["transplant"] + 2 * adapter


def merge_host_bytes(model: Architecture, adapter: int, *, dense: bool = False) -> int:
    """Return the host memory of a merge in bytes: the adapter twice, and blocks of weights.

    A dense method holds a whole projection and six float32 intermediates of its change, twice.
    """
    largest = largest_projection(model)
    return IMPORTS["merge"] + BLOCKS + 2 * adapter + dense * 2 * 6 * FLOAT32 * largest


def movement_host_bytes(model: Architecture) -> int:
    """Return the host memory of measuring movement in bytes: both versions' embeddings."""
    return IMPORTS["movement"] + 2 * model.vocabulary_size * model.hidden_size * model.dtype_bytes


def projection_host_bytes(model: Architecture, adapter: int) -> int:
    """Return the host memory of comparing two patches in bytes, one projection at a time.

    Both patches as read and in float64, the largest projection of two versions, and three float64
    copies of it: for angles the difference and its parts, for norms a sum and its square.
    """
    largest = largest_projection(model)
    return IMPORTS["movement"] + 2 * 3 * adapter + largest * (2 * model.dtype_bytes + 3 * 8)


def patch_training(settings: dict[str, Any], *, gpu: bool) -> TrainingMemory:
    """Return the training of a patch; `auto` precision is bfloat16 on a GPU, else float32."""
    half = settings["precision"] == "bfloat16" or (settings["precision"] == "auto" and gpu)
    width = HALF if half else FLOAT32
    targets = settings["target_modules"]
    return TrainingMemory(
        batch=settings["batch_size"],
        length=settings["max_length"],
        weight_bytes=width,
        width=width,
        rank=settings["rank"],
        targets=targets if isinstance(targets, str) else tuple(targets),
        checkpointing=settings["gradient_checkpointing"],
        accumulates=settings["gradient_accumulation"] > 1,
        mask_bytes=1 if gpu else FLOAT32,
    )


def evolution_training(recipe: dict[str, Any], *, gpu: bool) -> TrainingMemory:
    """Return the training of an Axolotl recipe, with Axolotl's defaults for missing keys."""
    pure = bool(recipe.get("bfloat16") or recipe.get("float16"))
    half = pure or recipe.get("bf16") is True or recipe.get("fp16") is True
    half = half or (recipe.get("bf16", "auto") == "auto" and gpu)
    width = HALF if half else FLOAT32
    # Mixed precision keeps the weights that it trains in float32 (training/axolotl_plugin.py).
    kept = width if recipe.get("adapter") or pure else FLOAT32
    quantised = 0.5 if recipe.get("load_in_4bit") else 1 if recipe.get("load_in_8bit") else kept
    targets: str | tuple[str, ...] | None = None
    moment = FLOAT32 if recipe.get("adapter") else kept
    if recipe.get("adapter"):
        named = recipe.get("lora_target_modules")
        named = [named] if isinstance(named, str) else named
        linear = recipe.get("lora_target_linear") or not named
        targets = ALL_LINEAR if linear else tuple(named)
    return TrainingMemory(
        batch=recipe.get("micro_batch_size") or 1,
        length=recipe.get("sequence_len") or 512,
        weight_bytes=quantised,
        width=width,
        rank=(recipe.get("lora_r") or 8) if targets is not None else 0,
        targets=targets,
        checkpointing=bool(recipe.get("gradient_checkpointing")),
        accumulates=(recipe.get("gradient_accumulation_steps") or 1) > 1,
        optimizer_bytes=2 if "8bit" in str(recipe.get("optimizer", "")) else 2 * moment,
        mask_bytes=(1 if gpu else FLOAT32) if recipe.get("lora_dropout") else 0,
    )


def pretraining(settings: dict[str, Any]) -> TrainingMemory:
    """Return the training of a pretrained base: all weights in float32."""
    return TrainingMemory(
        batch=settings["batch_size"],
        length=settings["sequence_length"],
        weight_bytes=FLOAT32,
        width=FLOAT32,
    )


def trainer_checkpoint_bytes(model: Architecture, training: TrainingMemory, *, kept: int) -> int:
    """Return the bytes of the checkpoints during a training: trained weights and AdamW's state.

    `kept` is the limit of checkpoints; one more exists while it is written.
    """
    trained = trained_parameters(model, training)
    weights = trained * (FLOAT32 if training.targets is not None else training.weight_bytes)
    return int((kept + 1) * (weights + trained * training.optimizer_bytes))


def evolution_work_bytes(model: Architecture, recipe: dict[str, Any], *, gpu: bool) -> int:
    """Return the bytes that an evolution needs in addition to its output while it trains.

    A recipe without `save_total_limit` keeps all checkpoints, whose number depends on the corpus;
    two are counted. The final weights are moved, not copied.
    """
    training = evolution_training(recipe, gpu=gpu)
    saves = str(recipe.get("save_strategy", "epoch")).lower() not in ("no", "false")
    if not saves:
        adapter = training.targets is not None
        return FLOAT32 * trained_parameters(model, training) if adapter else 0
    kept = recipe.get("save_total_limit") or 2
    return trainer_checkpoint_bytes(model, training, kept=kept)
