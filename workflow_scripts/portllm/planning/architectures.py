"""Sizes of models: parameters and projections, from a checkpoint's headers or a configuration.

Nothing is loaded. Sizes are numbers of elements; in formulas: h hidden size, f the MLP's, L layers,
a heads, g key-value heads, d head size, V vocabulary, r rank.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from portllm.weights import attention
from portllm.weights.checkpoints import HEAD

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
    "qwen3": {
        **_SHARED,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
}
# Names of the same sizes in other architectures.
ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_sequence_length", "max_seq_len"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
}
# Architectures whose MLPs have two projections; all others have a third, the gate.
WITHOUT_GATE = frozenset(
    {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron"}
    | {"opt", "phi", "starcoder2"}
)
# Weights of one layer, such as model.layers.0.mlp.up_proj.weight, in a checkpoint.
IN_LAYER = re.compile(r"\.?(?:layers|h|blocks|block|layer)\.\d+\..*?(\w+)\.weight$")
NORMS_PER_LAYER = {"gemma2": 4}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# Projections that always have a bias, independent of the configuration.
BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}


class UnknownError(Exception):
    """A quantity cannot be estimated offline; the message is one line for the user."""


class Projection(NamedTuple):
    """A linear projection: its name in a layer, its widths, and how many the model has of it."""

    name: str
    inner: int
    out: int
    count: int


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder.

    `stored` are the projections and `total` the parameters that a checkpoint's headers state; None
    if only the configuration is known. `guess` says what is assumed of the architecture; empty if
    its formulas are tested.
    """

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
    gated: bool = True
    experts: int = 1
    active_experts: int = 1
    eager_attention: bool = False
    capped_logits: bool = False
    stored: tuple[Projection, ...] | None = None
    total: int | None = None
    guess: str = ""


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes in a configuration, under Llama's names and with defaults."""
    kind = config.get("model_type", "none")
    known = {key: value for key, value in config.items() if value is not None}
    for name, aliases in ALIASES.items():
        others = (known[alias] for alias in aliases if alias in known)
        known.setdefault(name, next(others, None))
    known = {key: value for key, value in known.items() if value is not None}
    # What the base class of transformers' configurations assumes.
    default = {**_SHARED, "tie_word_embeddings": True, "max_position_embeddings": 2048}
    values = {**DEFAULTS.get(kind, default), **known}
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if missing := [name for name in needed if not isinstance(values.get(name), int)]:
        raise UnknownError(f"model_type {kind}: the configuration has no {' or '.join(missing)}")
    return values


def architecture(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Architecture:
    """Read a transformers configuration and, if there is one, the shapes of a checkpoint's tensors.

    Raises:
        UnknownError: the configuration lacks the sizes of a decoder.
    """
    text = config.get("text_config") or config
    values = _sizes(text)
    kind = values.get("model_type", "none")
    heads = values["num_attention_heads"]
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    tied = bool(values["tie_word_embeddings"])
    source = "the checkpoint" if shapes else "its configuration"
    guess = f"model_type {kind} has no formulas; it counts as a Llama of the sizes in {source}"
    experts = values.get("num_experts", 1)
    inner = values.get("intermediate_size", 4 * values["hidden_size"])
    return Architecture(
        model_type=kind,
        hidden_size=values["hidden_size"],
        intermediate_size=(values.get("moe_intermediate_size") if experts > 1 else None) or inner,
        layers=values["num_hidden_layers"],
        heads=heads,
        key_value_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim", values["hidden_size"] // heads),
        vocabulary_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        tied_embeddings=tied,
        attention_bias=values["attention_bias"],
        mlp_bias=values["mlp_bias"],
        dtype_bytes=DTYPES.get(dtype.removeprefix("torch."), FLOAT32),
        gated=kind not in WITHOUT_GATE,
        experts=experts,
        active_experts=values.get("num_experts_per_tok", 1) if experts > 1 else 1,
        eager_attention=attention.implementation(config) == "eager",
        capped_logits=bool(values.get("final_logit_softcapping", kind == "gemma2")),
        stored=_stored_projections(shapes) if shapes else None,
        total=_stored_parameters(shapes, tied=tied) if shapes else None,
        guess="" if kind in DEFAULTS else guess,
    )


def _stored_projections(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Projection, ...]:
    """Return the projections of all layers. Experts, which transformers fuses, are left out."""
    found: Counter[tuple[str, int, int]] = Counter()
    for name, shape in shapes.items():
        match = IN_LAYER.search(name)
        if match and len(shape) == 2 and ".experts." not in name:
            found[match[1], shape[1], shape[0]] += 1
    return tuple(Projection(*key, count) for key, count in found.items())


def _stored_parameters(shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> int:
    return sum(prod(shape) for name, shape in shapes.items() if not (tied and name == HEAD))


def projections(model: Architecture) -> tuple[Projection, ...]:
    """Return the linear projections of all layers, without fused experts."""
    if model.stored:
        return model.stored
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.heads * model.head_dim
    keys = model.key_value_heads * model.head_dim
    sizes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    if not model.gated:
        del sizes["gate_proj"]
    names = ATTENTION if model.experts > 1 else sizes
    return tuple(Projection(name, *sizes[name], model.layers) for name in names)


def largest_projection(model: Architecture) -> int:
    """Return the elements of the largest projection."""
    return max(projection.inner * projection.out for projection in projections(model))


def parameters(model: Architecture) -> int:
    """Return the number of parameters: the checkpoint's, or by the formula.

    Embedding V·h (twice if the output layer is not tied to it), per layer the seven projections
    with their biases and h for each norm, and h for the last norm. With experts, each has an MLP.
    """
    if model.total is not None:
        return model.total
    weights = 0
    for name, inner, out, count in projections(model):
        chosen = model.attention_bias if name in ATTENTION else model.mlp_bias
        bias = chosen or name in BIASED.get(model.model_type, ())
        weights += count * (inner * out + out * bias)
    if model.experts > 1:
        expert = (2 + model.gated) * model.hidden_size * model.intermediate_size
        weights += model.layers * model.experts * (expert + model.hidden_size)
    norms = NORMS_PER_LAYER.get(model.model_type, 2) * model.hidden_size
    norms += 2 * model.head_dim * (model.model_type == "qwen3")
    embeddings = model.vocabulary_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return embeddings + weights + model.layers * norms + model.hidden_size


def targeted(model: Architecture, targets: str | Iterable[str]) -> tuple[Projection, ...]:
    """Return the projections that LoRA adapts; `all-linear` is PEFT's, without the output layer.

    Raises:
        UnknownError: the model has no projection of a name.
    """
    linear = projections(model)
    if isinstance(targets, str):
        targets = {projection.name for projection in linear} if targets == ALL_LINEAR else [targets]
    chosen = {name.rsplit(".", 1)[-1] for name in targets}
    if unknown := sorted(chosen - {projection.name for projection in linear}):
        raise UnknownError(f"LoRA on {', '.join(unknown)}: expected linear projections only")
    return tuple(projection for projection in linear if projection.name in chosen)


def lora_parameters(
    model: Architecture, rank: int, targets: str | Iterable[str] = ALL_LINEAR
) -> int:
    """Return LoRA's trainable parameters, r·(in + out) per projection (Hu et al. 2021, 4.1)."""
    chosen = targeted(model, targets)
    return rank * sum((inner + out) * count for _, inner, out, count in chosen)
