"""Which attention of transformers computes what a model's architecture defines.

Gemma-2 caps attention scores with tanh. `sdpa`, the default, leaves the cap out; `eager` has it.
"""

from collections.abc import Mapping
from typing import Any

CAPPED_BY_DEFAULT = ("gemma2", "vaultgemma")
"""Model types that cap the scores where the configuration does not say."""
SOFT_CAPPING = frozenset({"eager", "flex_attention", "flash_attention_2"})
"""The implementations that cap the scores."""


def is_capped(config: Mapping[str, Any]) -> bool:
    """Return whether a model with this configuration caps its attention scores."""
    text = config.get("text_config") or config
    default = 50.0 if str(text.get("model_type")).startswith(CAPPED_BY_DEFAULT) else None
    return text.get("attn_logit_softcapping", default) is not None


def implementation(config: Mapping[str, Any]) -> str:
    """Return the `attn_implementation` to load a model with on any device."""
    return "eager" if is_capped(config) else "sdpa"
