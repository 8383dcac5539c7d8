"""Score with transformers: a version, un-patched and with each adapter attached.

The version is loaded once and adapters are switched. The scores equal those of
`lm_eval --model hf --model_args pretrained=…,peft=…`, for Gemma-2 with
`attn_implementation=eager` among the arguments. With several GPUs, each holds a copy of the
version and answers a share of the requests.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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

from portllm.errors import InputError
from portllm.jobs import data_parallel
from portllm.scoring import validity
from portllm.scoring.cache import ScoringSettings
from portllm.scoring.harness import Result, evaluate
from portllm.transplant import edits, merging, ports
from portllm.weights import adapters, attention, finite, loading, module_patterns
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)

ADAPTER = "patch"


def shared(
    requests: list[Instance], answer: Callable[[list[Instance]], list[Any]], state: PartialState
) -> list[Any]:
    """Split requests between the processes; return all answers, in order, in every process."""
    # The choices of an item stay in one process, because they share their context.
    share = [
        index
        for index, request in enumerate(requests)
        if request.doc_id % state.num_processes == state.process_index
    ]
    answers = answer([requests[index] for index in share]) if share else []
    gathered = gather_object(list(zip(share, answers, strict=True)))
    return [answer for _, answer in sorted(gathered, key=itemgetter(0))]


class ModelReplica(HFLM):
    """A copy of the model in one of several processes, which share the requests.

    lm-eval's own data parallelism splits items and pads the shorter shares, which reorders and
    duplicates samples. Here every process sees all items, and results equal those of one process,
    except for rounding in different batches.
    """

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return (log-likelihood, is greedy) of each request's continuation."""
        return self._shared(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[Any]:
        """Return the log-likelihood of each request's whole text."""
        return self._shared(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the generated text for each request's prompt."""
        return self._shared(super().generate_until, requests, disable_tqdm)

    def _shared(self, method: Any, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        quiet = disable_tqdm or not data_parallel.is_first()
        state = PartialState()
        return shared(requests, lambda share: method(share, disable_tqdm=quiet), state)


def load_version(directory: Path, dtype: str) -> tuple[Any, Any]:
    """Load a version's model, onto the GPU if there is one, and its tokenizer.

    Raises:
        InputError: the version cannot be loaded, or has weights that are not finite.
    """
    # Straight to this process's GPU: each of n processes would otherwise hold a copy on the host.
    device_map = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    checkpoint = Checkpoint(directory)
    checkpoint.check_layers()
    attention_kind = attention.implementation(checkpoint.config)
    with loading.explained(directory, "load this version"):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention_kind, device_map=device_map
        )
        tokenizer = AutoTokenizer.from_pretrained(directory)
    model.eval()
    kind = f"weights of {directory} in {str(model.dtype).removeprefix('torch.')}"
    finite.check(model.named_parameters(), kind, "fetch or train this version again")
    return model, tokenizer


@contextmanager
def patched(model: Any, adapter: Path) -> Iterator[Any]:
    """Attach a port to the model inside the block; afterwards the model is as before.

    An adapter is attached with PEFT. Any other port is added to the model's weights.

    Raises:
        InputError: the port cannot be attached, or has tensors or scales that are not finite.
    """
    if ports.is_dense(adapter):
        changes = edits.edits_of_port(ports.read(adapter))
        with merging.applied(dict(model.named_parameters()), changes):
            yield model
        return
    check_patch(adapter)
    stored = StoredAdapter(adapter)
    _ = stored.changed_shapes  # raises for ranks that PEFT would allocate before it reads tensors
    names = (name for name, _ in model.named_modules())
    module_patterns.check(stored.config, names, adapter / adapters.CONFIG)
    with loading.explained(adapter, "attach this adapter"):
        wrapped = PeftModel.from_pretrained(model, str(adapter), adapter_name=ADAPTER)
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()


def check_patch(adapter: Path) -> None:
    """Raise InputError if a tensor of an adapter is not finite."""
    tensors = finite.stored(adapter / adapters.WEIGHTS)
    finite.check(tensors, f"tensors of the patch {adapter}", "train it again")


@contextmanager
def _checked_logits(model: Any) -> Iterator[None]:
    """Raise InputError if logits are NaN inside the block, in which text is generated.

    Generation takes such logits for the first token. The check stays on the device until the end.
    """
    invalid: list[torch.Tensor] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        is_nan = torch.isnan(output.logits[:, -1]).any()
        invalid[:] = [is_nan | invalid[0] if invalid else is_nan]

    called = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = called.register_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()
    if invalid and bool(invalid[0]):
        raise InputError(f"logits are NaN while text is generated; {validity.ADVICE}")


def score(
    model: Any,
    tokenizer: Any,
    task: ConfigurableTask,
    settings: ScoringSettings,
    *,
    adapter: Path | None = None,
) -> Result:
    """Score a version, with an adapter attached if given; the model is left unchanged."""
    if adapter is not None:
        with patched(model, adapter) as wrapped:
            return score(wrapped, tokenizer, task, settings)
    lm = (ModelReplica if data_parallel.launched() else HFLM)(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )
    # The answers to other requests are log-likelihoods, which `evaluate` checks.
    generates = task.OUTPUT_TYPE == "generate_until"
    with _checked_logits(model) if generates else nullcontext():
        return evaluate(lm, task, settings)


class HfScorer:
    """Scores one version, loaded once, with one adapter after the other."""

    def __init__(self, version: Path, settings: ScoringSettings) -> None:
        if data_parallel.launched():
            data_parallel.join()
        self._model, self._tokenizer = load_version(version, settings.dtype)
        self._settings = settings

    def score(self, task: ConfigurableTask, adapter: Path | None) -> Result:
        """Score the version, with an adapter attached if given."""
        return score(self._model, self._tokenizer, task, self._settings, adapter=adapter)

    def finish(self) -> dict[str, Any]:
        """Leave the process group; return the devices used, as in `manifests.device_cost`."""
        return data_parallel.leave()
