"""Simulate trainings and scorings on a GPU: real operators on tensors that have no memory.

PyTorch's FakeTensor runs every operator on shapes alone, so a model of any size runs anywhere. The
peak is that of the storages that are alive. Devices are called CPUs, since a PyTorch without CUDA
has no others; what differs on a GPU is replaced: its dropout keeps a mask of one byte an element.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_
from transformers import AutoConfig, AutoModelForCausalLM

from portllm.planning.formulas import TrainingMemory
from portllm.weights import attention


class MemoryPeak(TorchDispatchMode):
    """Counts the bytes of all storages that operators create, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def restart(self) -> int:
        """Return the peak so far, and start another."""
        peak, self.peak = self.peak, self.now
        return peak

    def _track(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata in self._alive:
            return
        self._alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_(self._track, result)
        return result


class Dropout(torch.nn.Dropout):
    """Dropout as on a GPU."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Drop elements of the states and keep a Boolean mask."""
        return torch.native_dropout(states, self.p, True)[0] if self.p else states


def build(config: Mapping[str, Any], dtype: torch.dtype, lora: LoraConfig | None = None) -> Any:
    """Return a model on the meta device."""
    fields = {name: value for name, value in config.items() if name not in ("hub", "dtype")}
    chosen = attention.implementation(config)
    with torch.device("meta"):
        settings = AutoConfig.for_model(**fields)
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=chosen)
        return get_peft_model(model, lora) if lora else model


def materialise(model: Any) -> None:
    """Give the tensors of a model memory, within the simulation."""
    model.to_empty(device="cpu")
    (model.get_base_model() if hasattr(model, "get_base_model") else model).tie_weights()


def _lora(training: TrainingMemory) -> LoraConfig | None:
    if training.targets is None:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=training.rank,
        lora_dropout=0.1,
        target_modules=training.targets,
    )


def training_peaks(config: Mapping[str, Any], training: TrainingMemory) -> list[int]:
    """Return the peak bytes of the forward pass, the backward pass and the step of a training.

    They are those of the second step, in mixed precision as the Trainer computes.
    """
    half = training.width == 2
    dtype = torch.bfloat16 if training.weight_bytes == 2 else torch.float32
    model = build(config, dtype, _lora(training)).train()
    model.config.use_cache = False
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = Dropout
    if training.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryPeak() as memory:
        materialise(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        tokens = torch.zeros(training.batch, training.length, dtype=torch.long)
        batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
        for _ in range(2):
            for _ in range(2 if training.accumulates else 1):
                memory.restart()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(**batch).loss
                forward = memory.restart()
                loss.backward()
                backward = memory.restart()
            optimizer.step()
            step = memory.restart()
            optimizer.zero_grad()
        return [forward, backward, step]


def scoring_peaks(config: Mapping[str, Any], batch: int, length: int) -> list[int]:
    """Return the peak bytes of two batches in bfloat16, as lm-eval's HFLM scores them."""
    model = build(config, torch.bfloat16).eval()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        MemoryPeak() as memory,
        torch.inference_mode(),
    ):
        materialise(model)
        tokens = torch.zeros(batch, length, dtype=torch.long)
        for _ in range(2):
            # HFLM keeps `scores` until the next ones replace them.
            scores = torch.log_softmax(model(tokens).logits, -1)  # noqa: F841
        return [memory.peak]
