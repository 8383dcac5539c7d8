"""Axolotl plugin: seed the LoRA initialisation, keep master weights, save checkpoints on signals.

Axolotl seeds the Trainer, but not the model, which it builds earlier. Without the plugin, equal
seeds give different adapters.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from datasets import Dataset
from transformers import set_seed

from portllm.jobs import torch_devices
from portllm.jobs.signals import end_workers_with_this_process
from portllm.storage.files import write_json
from portllm.storage.manifests import Meter, device_cost
from portllm.training.divergence import Divergence
from portllm.training.evolution import (
    COST_FILE,
    DIVERGED,
    LEARNING_RATE,
    TRAINING,
    write_cost,
)
from portllm.training.interruption import Interruption
from portllm.training.step_log import StepLogCallback

LARGE = 200_000
"""Number of rows above which saving a dataset is worth starting processes for."""

LOGGER = "axolotl.portllm"
"""Logger of the progress. Axolotl shows INFO messages only of loggers below its own."""

_save_to_disk = Dataset.save_to_disk
_meter = Meter()


def _save_small_datasets_in_process(
    dataset: Dataset, path: str, *more: Any, num_proc: int | None = None, **options: Any
) -> None:
    processes = num_proc if len(dataset) >= LARGE else None
    _save_to_disk(dataset, path, *more, num_proc=processes, **options)


class PortLLMPlugin(BasePlugin):
    """The plugin that rendered recipes list under `plugins`."""

    def __init__(self) -> None:
        super().__init__()
        self._interruption = Interruption(_meter.seconds)

    def register(self, cfg: dict[str, Any]) -> None:
        """Save small prepared datasets in this process, and end workers with this process.

        Axolotl always starts worker processes for this, and each spends ten seconds on imports.
        """
        Dataset.save_to_disk = _save_small_datasets_in_process
        end_workers_with_this_process()

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Keep full weights in float32 where `bf16` asks for mixed precision; load no dataset.

        Axolotl loads the weights themselves in bfloat16, where most updates of a usual learning
        rate are rounded away. `bfloat16: true` still asks for that. This is the last hook before
        the dtype is used.
        """
        if cfg.bf16 and not cfg.bfloat16 and not cfg.adapter:
            cfg.torch_dtype = torch.float32

    def pre_model_load(self, cfg: Any) -> None:
        """Seed before the model and its LoRA factors are initialised."""
        set_seed(cfg.seed)

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Add the callbacks for signals, for the progress and for a loss that is not finite.

        Raises:
            InputError: this process sees several GPUs that nobody has given it. The Trainer would
                spread over all of them.
        """
        torch_devices.check(single=True)
        cost_file = os.environ.get(COST_FILE)
        record = Path(cost_file).with_name(DIVERGED) if cost_file else None
        return [
            self._interruption,
            StepLogCallback(logging.getLogger(LOGGER)),
            Divergence("training", LEARNING_RATE, record),
        ]

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Replace the progress bar, which fills a log file, and log every loss as it is.

        The Trainer would hide a loss that is NaN, so that `Divergence` would not see it.
        """
        return {
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
            # Otherwise the Trainer refuses bfloat16 without a GPU.
            "use_cpu": not torch.cuda.is_available(),
        }

    def post_train(self, cfg: Any, model: Any) -> None:
        """Write the peak memory of the devices, and that the training is complete.

        Only the training processes know this.
        """
        if COST_FILE in os.environ:
            cost_file = Path(os.environ[COST_FILE])
            rank = int(os.environ.get("RANK", "0"))
            write_cost(cost_file, rank, device_cost())
            if rank == 0:
                write_json(cost_file.with_name(TRAINING), self._interruption.summary())
