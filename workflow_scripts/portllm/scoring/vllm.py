"""Score with vLLM through lm-eval's model class, with each patch attached as LoRA.

The engine is started once. Prompts, filters and metrics are the same as with transformers. Inputs
that vLLM cannot score, or would silently score wrongly, are rejected before it starts.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portllm.errors import InputError
from portllm.scoring.cache import ScoringSettings
from portllm.storage import manifests
from portllm.storage.files import read_json
from portllm.transplant import ports
from portllm.weights import adapters, finite
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from portllm.scoring.harness import Result

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for `max_lora_rank` (`MaxLoRARanks` in its LoRA configuration)."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_of(version: Path, dtype: str) -> str:
    """Return the dtype to compute a version in; `auto` is the dtype of its weights.

    vLLM's own "auto" means 16 bits even for float32 weights, so it is never passed on.
    """
    if dtype != "auto":
        return dtype
    model = Checkpoint(version)
    named = model.config.get("dtype") or model.config.get("torch_dtype")
    stored = model.shards[0].tensors[0].dtype
    return named or _DTYPES.get(stored, stored)


_NOT_APPLIED = {
    "rank_pattern": "ignores, so that it would scale the patch wrongly",
    "alpha_pattern": "ignores, so that it would scale the patch wrongly",
    "use_dora": "cannot attach",
    "modules_to_save": "cannot attach",
}


def rank_to_reserve(directories: list[Path]) -> int:
    """Return the smallest `max_lora_rank` of vLLM that fits every adapter.

    Raises:
        InputError: an adapter is not LoRA, or has a setting that vLLM does not apply.
    """
    largest = 1
    for directory in directories:
        config = StoredAdapter(directory).config
        for name, consequence in _NOT_APPLIED.items():
            if config.get(name):
                raise InputError(
                    f"{directory / adapters.CONFIG}: {name} is set, which vLLM {consequence}; set "
                    "scoring.backend: hf"
                )
        if config["r"] > RANKS[-1]:
            raise InputError(
                f"{directory / adapters.CONFIG}: rank {config['r']}; vLLM attaches adapters of "
                f"rank {RANKS[-1]} at most; set scoring.backend: hf"
            )
        largest = max(largest, config["r"])
    return next(rank for rank in RANKS if rank >= largest)


def engine(
    version: Path, settings: ScoringSettings, directories: list[Path], gpus: int
) -> dict[str, Any]:
    """Return the arguments of lm-eval's vLLM model.

    Args:
        version: directory of the version.
        settings: the scoring settings.
        directories: the adapters that the version will be scored with.
        gpus: the number of GPUs, over which the model is split.

    Raises:
        InputError: vLLM cannot score this version with these adapters.
    """
    if gpus < 1:
        raise InputError("scoring.backend: vllm needs a GPU; found none; set it to hf")
    for directory in filter(ports.is_dense, directories):
        raise InputError(
            f"{directory}: vLLM attaches adapters, but this method's port is not an adapter; set "
            "scoring.backend: hf"
        )
    heads = read_json(version / "config.json").get("num_attention_heads", gpus)
    if heads % gpus:
        raise InputError(
            f"vLLM splits a model by its attention heads: {version} has {heads}, which is not a "
            f"multiple of the job's {gpus} GPUs; change resources.score.gpu"
        )
    dtype = dtype_of(version, settings.dtype)
    if directories and dtype not in ("float16", "bfloat16"):
        raise InputError(
            f"vLLM attaches LoRA in 16 bits only, and {version} would be computed in {dtype}; set "
            "scoring.dtype: bfloat16, or scoring.backend: hf"
        )
    return {
        "pretrained": str(version),
        "dtype": dtype,
        "tensor_parallel_size": gpus,
        # lm-eval passes all requests at once; the engine batches this many at a time.
        "batch_size": "auto",
        "max_batch_size": settings.batch_size,
        "max_length": settings.max_length,
        # Any adapter enables LoRA here; `score` chooses the one to attach.
        "lora_local_path": str(directories[0].absolute()) if directories else None,
        "max_lora_rank": rank_to_reserve(directories),
    }


class VllmScorer:
    """Scores one version, in a vLLM engine started once, with one adapter after the other."""

    def __init__(
        self, version: Path, settings: ScoringSettings, directories: list[Path], *, gpus: int
    ) -> None:
        """Start the engine; for the arguments see `engine`.

        Raises:
            InputError: as `engine`, or the version or an adapter has weights that are not finite.
        """
        arguments = engine(version, settings, directories, gpus)
        weights = Checkpoint(version).tensors()
        finite.check(weights, f"weights of {version}", "fetch or train this version again")
        for directory in directories:
            tensors = finite.stored(directory / adapters.WEIGHTS)
            finite.check(tensors, f"tensors of the patch {directory}", "train it again")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from lm_eval.models.vllm_causallms import VLLM

        self._lm = VLLM(**arguments)
        self._settings = settings
        self._gpus = gpus
        # vLLM identifies adapters by number.
        self._numbers = {adapter: number for number, adapter in enumerate(directories, start=1)}

    def score(self, task: "ConfigurableTask", adapter: Path | None) -> "Result":
        """Score the version, with an adapter attached if given."""
        from vllm.lora.request import LoRARequest

        from portllm.scoring.harness import evaluate

        self._lm.lora_request = adapter and LoRARequest(
            f"patch-{self._numbers[adapter]}", self._numbers[adapter], str(adapter.absolute())
        )
        return evaluate(self._lm, task, self._settings)

    def finish(self) -> dict[str, Any]:
        """Return the devices used. The engine's processes do not report their peak memory."""
        device = manifests.device_cost()["device"]
        return {"device": device, "devices": self._gpus, "peak_device_bytes": []}
