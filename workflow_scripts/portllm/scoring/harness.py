"""Run lm-eval's evaluator for one model and task, with any backend."""

import json
import random
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import handle_non_serializable

from portllm.scoring import metrics, ties, validity
from portllm.scoring.cache import ScoringSettings

# lm-eval's own default seeds.
RANDOM_SEED, OTHER_SEED = 0, 1234


@dataclass(frozen=True)
class Result:
    """Metrics by lm-eval name and filter (`acc,none`), and one sample per item and filter."""

    metrics: dict[str, dict[str, float | int | None]]
    samples: list[dict[str, Any]]


def _seed() -> None:
    random.seed(RANDOM_SEED)
    numpy.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)


def evaluate(lm: LM, task: ConfigurableTask, settings: ScoringSettings) -> Result:
    """Score a model on a task with the seeds and few-shot rules of lm-eval's command line.

    Raises:
        InputError: a log-likelihood or a metric is not finite.
    """
    _seed()
    # As on lm-eval's command line: a task that demands zero-shot stays zero-shot, and one that
    # states no number has none.
    own = task.config.num_fewshot
    if own is None or (own != 0 and settings.few_shot is not None):
        task.set_config(key="num_fewshot", value=settings.few_shot or 0)
    task.set_fewshot_seed(seed=OTHER_SEED)
    name = task.config.task
    multiturn = settings.fewshot_as_multiturn
    output = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        limit=settings.limit,
        bootstrap_iters=settings.bootstrap_iterations,
        log_samples=True,
        confirm_run_unsafe_code=settings.allow_unsafe_code,
        system_instruction=settings.system_instruction,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template if multiturn is None else multiturn,
    )
    samples = output["samples"][name]
    validity.check_answers(samples)
    count = len({sample["doc_id"] for sample in samples})
    measured = metrics.parse(output["results"][name], count)
    validity.check_metrics(measured)
    chooses = task.OUTPUT_TYPE == "multiple_choice"
    return Result(measured, [_sample(row, chooses=chooses) for row in samples])


def _sample(row: dict[str, Any], *, chooses: bool) -> dict[str, Any]:
    # The keys that lm-eval itself writes, without the document, which doc_hash identifies.
    kept = ("doc_id", "filter", "target", "resps", "filtered_resps", "doc_hash", "prompt_hash")
    values = {metric: row[metric] for metric in row["metrics"]}
    sample = {**{name: row[name] for name in kept}, "metrics": values}
    if chooses and "acc" in values:
        tied = ties.accuracy_range(row["filtered_resps"], row["target"], values["acc"])
        sample |= {} if tied is None else {ties.TIED: tied}
    return json.loads(json.dumps(sample, default=handle_non_serializable, ensure_ascii=False))
