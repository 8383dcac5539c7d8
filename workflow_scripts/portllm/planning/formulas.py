"""Formulae of what models and jobs take: parameters, disk, memory.

Models are known by their transformers configuration alone; nothing is loaded. Sizes are bytes,
lengths tokens; memory is that of one device without sharding. In formulae: h hidden size, f the
MLP's, L layers, a heads, g key-value heads, d head size, V vocabulary, P parameters, T trained
parameters, r rank, b batch, s length, w bytes of a number in the job's dtype.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from portllm.errors import shown

FLOAT32, HALF = 4, 2
DTYPES = {"float32": FLOAT32, "bfloat16": HALF, "float16": HALF}
ALL_LINEAR = "all-linear"

# What transformers assumes for keys that a configuration leaves out.
_SHARED = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        **_SHARED,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        **_SHARED,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
    "gemma2": {
        **_SHARED,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "qwen2": {
        **_SHARED,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
}
NORMS_PER_LAYER = {"llama": 2, "mistral": 2, "gemma2": 4, "qwen2": 2}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# Projections that always have a bias, independent of the configuration.
BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}

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


class UnknownError(Exception):
    """A quantity cannot be estimated offline; the message is one line for the user."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder with gated MLPs, one of the model types in `DEFAULTS`."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    context: int
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype_bytes: int


def architecture(config: dict[str, Any]) -> Architecture:
    """Read a transformers configuration; raises UnknownError for other architectures."""
    kind = config.get("model_type", "none")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise UnknownError(f"no formulas for model_type {kind}; known: {', '.join(DEFAULTS)}")
    values = {
        **DEFAULTS[kind],
        **{key: value for key, value in config.items() if value is not None},
    }
    sizes = [key for key, value in DEFAULTS[kind].items() if type(value) is int]
    for key in (*sizes, "num_key_value_heads", "head_dim"):
        size = values.get(key, 1)
        if type(size) is not int or not 0 < size < 1 << 32:
            raise UnknownError(f"{key}: found {shown(size)}, expected a positive whole number")
    heads = values["num_attention_heads"]
    dtype = str(values.get("dtype", values.get("torch_dtype", "float32"))).removeprefix("torch.")
    return Architecture(
        model_type=kind,
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        key_value_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim", values["hidden_size"] // heads),
        vocabulary_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        tied_embeddings=values["tie_word_embeddings"],
        attention_bias=values["attention_bias"],
        mlp_bias=values["mlp_bias"],
        dtype_bytes=DTYPES.get(dtype, FLOAT32),
    )


def projections(model: Architecture) -> dict[str, tuple[int, int]]:
    """Return (input, output) width of each linear projection of a layer."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.heads * model.head_dim
    keys = model.key_value_heads * model.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def parameters(model: Architecture) -> int:
    """Return the number of parameters.

    Embedding V·h (twice if the output layer is not tied to it), per layer the seven projections
    with their biases and h for each norm, and h for the last norm.
    """
    linear = projections(model)
    biases = 0
    for name, (_, out) in linear.items():
        chosen = model.attention_bias if name in ATTENTION else model.mlp_bias
        biases += out * (chosen or name in BIASED.get(model.model_type, ()))
    weights = sum(inner * out for inner, out in linear.values())
    norms = NORMS_PER_LAYER[model.model_type] * model.hidden_size
    embeddings = model.vocabulary_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return embeddings + model.layers * (weights + biases + norms) + model.hidden_size


def _targets(model: Architecture, targets: str | Iterable[str]) -> dict[str, tuple[int, int]]:
    linear = projections(model)
    if isinstance(targets, str):
        targets = linear if targets == ALL_LINEAR else [targets]
    chosen = {name.rsplit(".", 1)[-1] for name in targets}
    if unknown := sorted(chosen - linear.keys()):
        raise UnknownError(f"LoRA on {', '.join(unknown)}: expected linear projections only")
    return {name: linear[name] for name in linear if name in chosen}


def lora_parameters(
    model: Architecture, rank: int, targets: str | Iterable[str] = ALL_LINEAR
) -> int:
    """Return LoRA's trainable parameters: r·(in + out) per projection (Hu et al. 2021, sec. 4.1).

    `all-linear` means every projection but, as in PEFT, not the output layer.
    """
    sizes = _targets(model, targets).values()
    return model.layers * rank * sum(inner + out for inner, out in sizes)


def activations_of_layer(
    model: Architecture,
    width: int,
    targets: str | Iterable[str] | None = None,
    *,
    mask_bytes: int = 1,
) -> int:
    """Return the bytes per token that a layer keeps for the backward pass.

    Counted as in Korthikanti et al. (arXiv 2205.05198, section 4.1), who give 34·h + 5·a·s for a
    GPT layer in 16 bits. Current decoders differ: gated MLPs and float32 norms keep more, and
    PyTorch's fused attention does not keep the attention matrix.

    - norms: their input in float32, two of 4·h;
    - attention: queries and output, keys and values, 2·w·(a + g)·d;
    - MLP: gate, its activation and up, 3·w·f;
    - all weights trained (`targets` None): the norms' normalised rows and outputs, 4·w·h, and the
      inputs of the output projection, w·a·d, and of the down projection, w·f;
    - LoRA: for each target its dropped-out input in float32, 4·in, and the dropout's mask, one
      byte an element on a GPU, four on a CPU.

    Within 5 % of the tensors that PyTorch saves (tests/unit/planning/test_estimates.py), without
    the two additional norms of gemma2.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.heads * model.head_dim, model.key_value_heads * model.head_dim
    total = 2 * FLOAT32 * hidden + 2 * width * (queries + keys) + 3 * width * inner
    if targets is None:
        return total + width * (4 * hidden + queries + inner)
    return total + sum(n for n, _ in _targets(model, targets).values()) * (FLOAT32 + mask_bytes)


@dataclass(frozen=True)
class TrainingMemory:
    """The settings that decide the memory of a training; `targets` None trains all weights."""

    batch: int
    length: int
    weight_bytes: float
    width: int
    rank: int = 0
    targets: str | tuple[str, ...] | None = None
    checkpointing: bool = False
    optimizer_bytes: float = 8
    mask_bytes: int = 1


def trained_parameters(model: Architecture, training: TrainingMemory) -> int:
    """Return the number of parameters that a training changes."""
    if training.targets is None:
        return parameters(model)
    return lora_parameters(model, training.rank, training.targets)


def training_bytes(model: Architecture, training: TrainingMemory) -> dict[str, int]:
    """Return the peak device memory of a training in bytes, by part.

    - weights: P in the training's dtype (4 bits: half a byte each), LoRA factors T in float32;
    - gradients: one per trained parameter, in its dtype;
    - optimiser: AdamW's two moments, 2·4·T (Rajbhandari et al. 2020, ZeRO, section 3.1), or 2·T in
      8 bits; no float32 master copy, which transformers and Axolotl do not keep; an upper bound,
      because PyTorch keeps the moments of 16-bit weights in 16 bits;
    - activations: L layers of `activations_of_layer`; with gradient checkpointing the input of each
      layer, 2·s·b·h·L in 16 bits (Korthikanti et al., section 5), and one layer at a time;
    - logits: themselves, their float32 log-softmax and its gradient, s·b·V·(w + 4 + 4).
    """
    trained = trained_parameters(model, training)
    lora = training.targets is not None
    tokens = training.batch * training.length
    per_layer = tokens * activations_of_layer(
        model, training.width, training.targets, mask_bytes=training.mask_bytes
    )
    inputs = tokens * model.hidden_size * training.width * model.layers
    return {
        "weights": int(parameters(model) * training.weight_bytes) + lora * FLOAT32 * trained,
        "gradients": trained * (FLOAT32 if lora else training.width),
        "optimiser": int(trained * training.optimizer_bytes),
        "activations": inputs + per_layer if training.checkpointing else model.layers * per_layer,
        "logits": tokens * model.vocabulary_size * (training.width + 2 * FLOAT32),
    }


def scoring_bytes(model: Architecture, batch: int, length: int, width: int) -> dict[str, int]:
    """Return the peak memory of scoring in bytes, by part, without a backward pass.

    - weights: P in the scoring dtype;
    - activations: those of one layer, at most what training keeps of it;
    - cache: keys and values of all layers, 2·L·g·d·w per token (transformers returns them);
    - logits: themselves and their log-softmax, 2·s·b·V·w (lm-eval's HFLM).
    """
    tokens = batch * length
    keys = model.key_value_heads * model.head_dim
    return {
        "weights": parameters(model) * width,
        "activations": tokens * activations_of_layer(model, width),
        "cache": tokens * 2 * model.layers * keys * width,
        "logits": tokens * 2 * model.vocabulary_size * width,
    }


def transplant_host_bytes(adapter: int) -> int:
    """Return the host memory of a port in bytes: the adapter before and after the method."""
    return IMPORTS["transplant"] + 2 * adapter


def merge_host_bytes(model: Architecture, adapter: int, *, dense: bool = False) -> int:
    """Return the host memory of a merge in bytes: the adapter twice, and blocks of weights.

    A dense method holds a whole projection and six float32 intermediates of its change, twice.
    """
    largest = max(inner * out for inner, out in projections(model).values())
    return IMPORTS["merge"] + BLOCKS + 2 * adapter + dense * 2 * 6 * FLOAT32 * largest


def movement_host_bytes(model: Architecture) -> int:
    """Return the host memory of measuring movement in bytes: both versions' embeddings."""
    return IMPORTS["movement"] + 2 * model.vocabulary_size * model.hidden_size * model.dtype_bytes


def projection_host_bytes(model: Architecture, adapter: int) -> int:
    """Return the host memory of comparing two patches in bytes, one projection at a time.

    Both patches as read and in float64, the largest projection of two versions, and three float64
    copies of it: for angles the difference and its parts, for norms a sum and its square.
    """
    largest = max(inner * out for inner, out in projections(model).values())
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
        mask_bytes=1 if gpu else FLOAT32,
    )


def evolution_training(recipe: dict[str, Any], *, gpu: bool) -> TrainingMemory:
    """Return the training of an Axolotl recipe, with Axolotl's defaults for missing keys."""
    half = recipe.get("bf16") is True or recipe.get("fp16") is True
    half = half or (recipe.get("bf16", "auto") == "auto" and gpu)
    width = HALF if half else FLOAT32
    quantised = 0.5 if recipe.get("load_in_4bit") else 1 if recipe.get("load_in_8bit") else width
    targets: str | tuple[str, ...] | None = None
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
        optimizer_bytes=2 if "8bit" in str(recipe.get("optimizer", "")) else 8,
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
    weights = trained * (FLOAT32 if training.targets is not None else training.width)
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
