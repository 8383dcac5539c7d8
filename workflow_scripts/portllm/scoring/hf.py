"""Scoring with transformers: a version, un-patched and with each patch attached to it.

The version is loaded once and adapters are switched, which gives what
`lm_eval --model hf --model_args pretrained=…,peft=…` gives for each. On several GPUs every one has
a copy of the version and answers its share of the requests.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from portllm.scoring import data_parallel
from portllm.scoring.cache import ScoringSettings
from portllm.scoring.harness import Result, evaluate
from portllm.storage import manifests
from portllm.transplant import edits, merging, ports

log = logging.getLogger(__name__)

ADAPTER = "patch"


def join() -> PartialState:
    """Meet the other processes of this job, if it has any, each on a GPU of its own."""
    # Shares differ in length. A process that fails does not keep the others: their launcher ends
    # them.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(weeks=52))


def shared(
    requests: list[Instance], answer: Callable[[list[Instance]], list[Any]], state: PartialState
) -> list[Any]:
    """Answers to all requests, of which each process answers its share; all get all of them."""
    # The choices of an item stay together, since they share their context.
    mine = [
        index
        for index, request in enumerate(requests)
        if request.doc_id % state.num_processes == state.process_index
    ]
    answers = answer([requests[index] for index in mine]) if mine else []
    gathered = gather_object(list(zip(mine, answers, strict=True)))
    return [given for _, given in sorted(gathered, key=itemgetter(0))]


class ModelReplica(HFLM):
    """A copy of the model in each of several processes, which share the requests.

    lm-eval's own way deals out items and fills up the shorter shares, so that samples come in
    another order and with doubled answers. Here every process keeps the books of all items, and
    results are those of one process but for the rounding of other batches.
    """

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of each request's continuation, and whether it is the greedy one."""
        return self._shared(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[Any]:
        """Log-likelihood of each request's whole text."""
        return self._shared(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """The text that follows each request's prompt."""
        return self._shared(super().generate_until, requests, disable_tqdm)

    def _shared(self, method: Any, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        quiet = disable_tqdm or not data_parallel.is_first()
        state = PartialState()
        return shared(requests, lambda mine: method(mine, disable_tqdm=quiet), state)


def load_version(directory: Path, dtype: str) -> tuple[Any, Any]:
    """Load a version's model, on the GPU where there is one, and its tokenizer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device)
    model.eval()
    return model, AutoTokenizer.from_pretrained(directory)


@contextmanager
def patched(model: Any, adapter: Path) -> Iterator[Any]:
    """The model with an adapter attached to it; it is as before when the block ends.

    A port that is no adapter is added to the model's weights for as long.
    """
    if ports.is_dense(adapter):
        changes = edits.edits_of_port(ports.read(adapter))
        with merging.applied(dict(model.named_parameters()), changes):
            yield model
        return
    wrapped = PeftModel.from_pretrained(model, str(adapter), adapter_name=ADAPTER)
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()


def score(
    model: Any,
    tokenizer: Any,
    task: ConfigurableTask,
    settings: ScoringSettings,
    *,
    adapter: Path | None = None,
) -> Result:
    """Score a version by itself or with an adapter on it; the model is left as it was."""
    if adapter is not None:
        with patched(model, adapter) as wrapped:
            return score(wrapped, tokenizer, task, settings)
    lm = (ModelReplica if data_parallel.launched() else HFLM)(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )
    return evaluate(lm, task, settings)


class HfScorer:
    """A version, loaded once, that is scored with one adapter after the other."""

    def __init__(self, version: Path, settings: ScoringSettings) -> None:
        if data_parallel.launched():
            join()
        self._model, self._tokenizer = load_version(version, settings.dtype)
        self._settings = settings

    def score(self, task: ConfigurableTask, adapter: Path | None) -> Result:
        """Score the version by itself or with an adapter attached to it."""
        return score(self._model, self._tokenizer, task, self._settings, adapter=adapter)

    def finish(self) -> dict[str, Any]:
        """Part from the other processes; return what devices were used, as a manifest says it."""
        cost = manifests.device_cost()
        if data_parallel.launched():
            peaks = gather_object([cost["peak_device_bytes"]])
            cost["peak_device_bytes"] = [max(peak) for peak in zip(*peaks, strict=True)]
            PartialState().destroy_process_group()
        return cost
