"""Load lm-eval tasks, which supply the prompts for both training and scoring."""

import contextlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from portllm import credentials
from portllm.data import hub, task_files
from portllm.errors import InputError

log = logging.getLogger(__name__)

GENERATED = 256
"""lm-eval's default limit of generated tokens."""


def _check(definition: dict[str, Any], name: str, path: Path, allow_unsafe_code: bool) -> None:
    """Refuse a definition that cannot be loaded, before any of its functions is imported."""
    if "class" in definition:
        raise InputError(
            f"task {name!r} is defined by a Python class of lm-eval ({path.name}), which is not "
            "supported; expected a YAML definition"
        )
    if definition.get("unsafe_code") and not allow_unsafe_code:
        raise InputError(
            f"task {name!r} executes code that the model generates; "
            f"set tasks.{name}.allow_unsafe_code: true to allow it"
        )


def _pinned(options: dict[str, Any] | None, path: str) -> dict[str, Any]:
    """Set the revision in a task's `dataset_kwargs` to the commit that is fetched."""
    options = options or {}
    return {**options, "revision": hub.dataset_commit(path, options.get("revision"))}


def _fetch(definition: dict[str, Any], hub_mirror: str | None) -> Any:
    """Load the data of a task as ConfigurableTask.download would."""
    import datasets

    options = dict(definition.get("dataset_kwargs") or {})
    options.pop("trust_remote_code", None)
    # Relative to a mirror, the task's own dataset path is a local directory.
    with contextlib.chdir(hub_mirror or "."):
        return datasets.load_dataset(
            path=definition.get("dataset_path"), name=definition.get("dataset_name"), **options
        )


def load(
    name: str,
    *,
    include: str | None = None,
    hub_mirror: str | None = None,
    dataset: Path | None = None,
    allow_unsafe_code: bool = False,
) -> ConfigurableTask:
    """Load an lm-eval task; only the source of its data may differ from lm-eval's own.

    The task's functions and templates run after its data is fetched, in an environment without
    credentials.

    Args:
        name: the task's name in lm-eval.
        include: folder with task YAMLs of the study.
        hub_mirror: local directory laid out like the hub, used instead of it.
        dataset: data that `save_dataset` has written; takes precedence over hub and mirror.
        allow_unsafe_code: accept a task that executes code that the model generates.

    Raises:
        InputError: the task is unknown, unsupported or without items, or executes generated code
            without permission.
    """
    path = task_files.locate(name, include)
    task_files.load(path)  # lm-eval sets no limits
    plain = load_yaml(path, resolve_func=False)
    _check(plain, name, path, allow_unsafe_code)
    source: dict[str, Any] = {}
    if dataset is not None:
        import datasets

        source["custom_dataset"] = lambda **_: datasets.load_from_disk(str(dataset))
    elif "custom_dataset" not in plain:
        if hub_mirror is None and hub.is_dataset_id(plain.get("dataset_path")):
            # Pinned before the fetch, so that the manifest records the commit that was fetched.
            source["dataset_kwargs"] = _pinned(plain.get("dataset_kwargs"), plain["dataset_path"])
        fetched = _fetch({**plain, **source}, hub_mirror)
        source["custom_dataset"] = lambda **_: fetched
    credentials.drop()
    definition = load_yaml(path, resolve_func=True)
    for key in ("tag", "group", "task_list"):
        definition.pop(key, None)
    try:
        return _configured({**definition, **source}, path)
    except IndexError as error:
        raise InputError(
            f"task {name!r}: found no first item of the split for scoring ({error}), expected one "
            "item or more"
        ) from None


def _configured(definition: dict[str, Any], path: Path) -> ConfigurableTask:
    try:
        return ConfigurableTask(config=definition)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: lm-eval cannot load this task: {type(error).__name__}: {error}"
        ) from error


def save_dataset(task: ConfigurableTask, directory: Path) -> None:
    """Write the splits that the task uses, so that scoring runs offline."""
    import datasets

    config = task.config
    few_shot = config.fewshot_config.split if config.fewshot_config else None
    used = (config.training_split, config.validation_split, config.test_split, few_shot)
    splits = {split: task.dataset[split] for split in dict.fromkeys(used) if split is not None}
    datasets.DatasetDict(splits).save_to_disk(str(directory))


def _gold_choice(task: ConfigurableTask, doc: dict[str, Any]) -> int:
    # As in ConfigurableTask.process_results: if every choice has its own context (winogrande),
    # doc_to_text returns the index of the gold choice.
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else int(gold)


def training_example(task: ConfigurableTask, doc: dict[str, Any]) -> dict[str, str]:
    """Return `prompt` and gold `completion` of a document, exactly as lm-eval would use them.

    Raises:
        InputError: the task's output type is not supported.
    """
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    metadata = (task.config.task, 0, 1)
    if task.OUTPUT_TYPE == "multiple_choice":
        requests = task.construct_requests(doc=doc, ctx=context, metadata=metadata)
        prompt, completion = requests[_gold_choice(task, doc)].args[:2]
    elif task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(doc)
        target = target[0] if isinstance(target, list) else target
        prompt, completion = context, f"{task.config.target_delimiter}{target}"
    elif task.OUTPUT_TYPE == "loglikelihood":
        request = task.construct_requests(doc=doc, ctx=context, metadata=metadata)
        prompt, completion = request.args[:2]
    else:
        raise InputError(
            f"task {task.config.task!r}: found output type {task.OUTPUT_TYPE}, expected "
            "multiple_choice, generate_until or loglikelihood to train a patch"
        )
    return {"prompt": prompt, "completion": completion}


def request_lengths(task: ConfigurableTask) -> dict[str, int]:
    """Return the number of requests that score the task, and their longest and mean characters.

    Counted without few-shot examples, and with what the model may generate at four characters a
    token. The plan derives memory and time from it; resources/task_sizes.json has that of known
    tasks.
    """
    metadata = (task.config.task, 0, 1)
    lengths, generated = [], 0
    for doc in task.eval_docs:
        context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
        requests = task.construct_requests(doc=doc, ctx=context, metadata=metadata)
        for request in requests if isinstance(requests, list) else [requests]:
            prompt, *rest = request.args
            answer = rest[0] if rest else ""
            if isinstance(answer, dict):
                generated = max(generated, answer.get("max_gen_toks", GENERATED))
                answer_length = 4 * generated
            else:
                answer_length = len(answer)
            lengths.append(len(prompt) + answer_length)
    return {
        "requests": len(lengths),
        "longest_request": max(lengths, default=0),
        "mean_request": sum(lengths) // max(1, len(lengths)),
        "generated_tokens": generated,
    }


def training_examples(
    task: ConfigurableTask, *, limit: int | None = None
) -> Iterator[dict[str, str]]:
    """Yield the training examples of a task.

    Args:
        task: the task.
        limit: the number of examples to draw, with a fixed seed; None for all.

    Raises:
        InputError: the task has no training split, or it is empty.
    """
    if not task.has_training_docs():
        raise InputError(f"task {task.config.task!r} has no training split")
    docs = task.training_docs()
    if not len(docs):
        raise InputError(
            f"task {task.config.task!r}: its split {task.config.training_split!r} has no items to "
            "train a patch with"
        )
    indices = range(len(docs))
    if limit is not None and limit < len(docs):
        indices = sorted(random.Random(0).sample(indices, limit))
    for index in indices:
        yield training_example(task, docs[index])
