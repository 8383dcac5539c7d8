"""Axolotl plugin: seeds the draw of LoRA's factors, spares a start, notes what training cost.

Axolotl seeds the Trainer but not the model that it builds before, so that equal seeds would give
different adapters.
"""

import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from datasets import Dataset
from transformers import set_seed

from portllm.evolution import COST_FILE, write_cost
from portllm.manifest import device_cost

LARGE = 200_000
"""Rows from which on saving a dataset pays for processes of its own."""

_save_to_disk = Dataset.save_to_disk


def _save_small_datasets_here(
    dataset: Dataset, path: str, *more: Any, num_proc: int | None = None, **options: Any
) -> None:
    processes = num_proc if len(dataset) >= LARGE else None
    _save_to_disk(dataset, path, *more, num_proc=processes, **options)


class PortLLMPlugin(BasePlugin):
    """Loaded by the rendered recipe under `plugins`."""

    def register(self, cfg: dict[str, Any]) -> None:
        """Save small prepared datasets in this process.

        Axolotl always asks for processes, and each imports everything anew, for ten seconds.
        """
        Dataset.save_to_disk = _save_small_datasets_here

    def pre_model_load(self, cfg: Any) -> None:
        """Seed before anything is drawn."""
        set_seed(cfg.seed)

    def post_train(self, cfg: Any, model: Any) -> None:
        """Write what the devices' memory peaked at; only the training processes can know."""
        if COST_FILE in os.environ:
            rank = int(os.environ.get("RANK", "0"))
            write_cost(Path(os.environ[COST_FILE]), rank, device_cost())
