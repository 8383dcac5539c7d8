"""Axolotl plugin: seeds the draw of LoRA's factors, and notes what the training cost.

Axolotl seeds the Trainer but not the model that it builds before, so that equal seeds would give
different adapters.
"""

import json
import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import set_seed

from portllm.evolution import COST_FILE
from portllm.manifest import device_cost


class PortLLMPlugin(BasePlugin):
    """Loaded by the rendered recipe under `plugins`."""

    def pre_model_load(self, cfg: Any) -> None:
        """Seed before anything is drawn."""
        set_seed(cfg.seed)

    def post_train(self, cfg: Any, model: Any) -> None:
        """Write what the devices' memory peaked at; only the training process can know."""
        if os.environ.get("LOCAL_RANK", "0") == "0" and COST_FILE in os.environ:
            Path(os.environ[COST_FILE]).write_text(json.dumps(device_cost()))
