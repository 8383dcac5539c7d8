"""A stand-in for vLLM, which needs a GPU: the API that lm-eval uses, backed by transformers."""

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class LoRARequest:
    """A request to attach an adapter, by name, number and directory."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """An engine that records its arguments and the adapter of each call."""

    started: "list[LLM]"

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.requests: list[LoRARequest | None] = []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=128))
        self._model = AutoModelForCausalLM.from_pretrained(
            arguments["model"], dtype=arguments["dtype"]
        )
        LLM.started.append(self)

    def generate(
        self, prompts: list[dict[str, Any]], *, lora_request: LoRARequest | None, **_: Any
    ) -> list[SimpleNamespace]:
        """Return log-probabilities for each token of the prompts: its own and the largest."""
        self.requests.append(lora_request)
        if lora_request is None:
            return [self._answer(self._model, prompt) for prompt in prompts]
        assert self.arguments["enable_lora"]
        assert Path(lora_request.lora_path).is_absolute()
        wrapped = PeftModel.from_pretrained(self._model, lora_request.lora_path)
        try:
            return [self._answer(wrapped, prompt) for prompt in prompts]
        finally:
            wrapped.unload()

    @torch.no_grad()
    def _answer(self, model: Any, prompt: dict[str, Any]) -> SimpleNamespace:
        ids = prompt["prompt_token_ids"]
        scores = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        logprobs: list[dict[int, float] | None] = [None]
        for row, token in zip(scores[:-1], ids[1:], strict=True):
            likeliest = int(row.argmax())
            logprobs.append({likeliest: float(row[likeliest]), token: float(row[token])})
        return SimpleNamespace(prompt_logprobs=logprobs)


def install(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    """Replace vllm by this module for lm-eval; return the list of started engines."""
    engines: list[LLM] = []
    monkeypatch.setattr(LLM, "started", engines, raising=False)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SimpleNamespace, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **_: None},
        "vllm.tokenizers": {"get_tokenizer": lambda name, **_: AutoTokenizer.from_pretrained(name)},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content, __path__=[], __spec__=SimpleNamespace())
        monkeypatch.setitem(sys.modules, name, module)
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else real(name)
    )
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    return engines
