"""Axolotl plugin: seeds the draw of LoRA's factors, spares a start, survives interruptions.

Axolotl seeds the Trainer but not the model that it builds before, so that equal seeds would give
different adapters.
"""

import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from datasets import Dataset
from transformers import set_seed

from portllm.jobs.signals import end_workers_with_this_process
from portllm.storage.files import write_json
from portllm.storage.manifests import Meter, device_cost
from portllm.training.evolution import COST_FILE, TRAINING, write_cost
from portllm.training.interruption import Interruption

LARGE = 200_000
"""Rows from which on saving a dataset pays for processes of its own."""

_save_to_disk = Dataset.save_to_disk
_meter = Meter()


def _save_small_datasets_here(
    dataset: Dataset, path: str, *more: Any, num_proc: int | None = None, **options: Any
) -> None:
    processes = num_proc if len(dataset) >= LARGE else None
    _save_to_disk(dataset, path, *more, num_proc=processes, **options)


class PortLLMPlugin(BasePlugin):
    """Loaded by the rendered recipe under `plugins`."""

    def __init__(self) -> None:
        super().__init__()
        self._interruption = Interruption(_meter.seconds)

    def register(self, cfg: dict[str, Any]) -> None:
        """Save small prepared datasets in this process, and leave no workers behind.

        Axolotl always asks for processes, and each imports everything anew, for ten seconds.
        """
        Dataset.save_to_disk = _save_small_datasets_here
        end_workers_with_this_process()

    def pre_model_load(self, cfg: Any) -> None:
        """Seed before anything is drawn."""
        set_seed(cfg.seed)

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Let the training end on a signal with a checkpoint."""
        return [self._interruption]

    def post_train(self, cfg: Any, model: Any) -> None:
        """Write what the devices' memory peaked at, and that the training is complete.

        Only the training processes can know either.
        """
        if COST_FILE in os.environ:
            cost_file = Path(os.environ[COST_FILE])
            rank = int(os.environ.get("RANK", "0"))
            write_cost(cost_file, rank, device_cost())
            if rank == 0:
                write_json(cost_file.with_name(TRAINING), self._interruption.described())
