"""lm-eval's task objects: the one source of prompts, for training text and for scoring."""

import contextlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from portllm.data import hub, task_files
from portllm.errors import InputError

log = logging.getLogger(__name__)


def _definition(name: str, include: str | None) -> dict[str, Any]:
    path = task_files.locate(name, include)
    definition = load_yaml(path, resolve_func=True)
    if "class" in definition:
        raise InputError(
            f"task {name!r} is a Python class of lm-eval ({path.name}), not a YAML definition; "
            "such tasks are not supported"
        )
    for key in ("tag", "group", "task_list"):
        definition.pop(key, None)
    return definition


def _refuse_unsafe(definition: dict[str, Any], name: str, allow: bool) -> None:
    if definition.get("unsafe_code") and not allow:
        raise InputError(
            f"task {name!r} executes code that the model writes; "
            f"set tasks.{name}.allow_unsafe_code: true to allow it"
        )


def load(
    name: str,
    *,
    include: str | None = None,
    hub_mirror: str | None = None,
    dataset: Path | None = None,
    allow_unsafe_code: bool = False,
) -> ConfigurableTask:
    """Load one of lm-eval's tasks, unmodified but for where its data comes from.

    The data come from `dataset` (written by `save_dataset`) where given, else from the directory
    `hub_mirror`, else from the hub. Raises InputError for an unknown task or one that executes
    generated code without leave.
    """
    definition = _definition(name, include)
    _refuse_unsafe(definition, name, allow_unsafe_code)
    if dataset is not None:
        import datasets

        definition["custom_dataset"] = lambda **_: datasets.load_from_disk(str(dataset))
    elif hub_mirror is None and hub.is_dataset_id(definition.get("dataset_path")):
        # Pinned before it is fetched, so that the manifest names the commit that was.
        options = definition.get("dataset_kwargs") or {}
        commit = hub.dataset_commit(definition["dataset_path"], options.get("revision"))
        definition["dataset_kwargs"] = {**options, "revision": commit}
    # A mirror is laid out like the hub, so the task's own dataset path is right from there.
    with contextlib.chdir(hub_mirror or "."):
        return ConfigurableTask(config=definition)


def save_dataset(task: ConfigurableTask, directory: Path) -> None:
    """Write the splits that the task uses, so that scoring needs no hub."""
    import datasets

    config = task.config
    few_shot = config.fewshot_config.split if config.fewshot_config else None
    used = (config.training_split, config.validation_split, config.test_split, few_shot)
    splits = {split: task.dataset[split] for split in dict.fromkeys(used) if split is not None}
    datasets.DatasetDict(splits).save_to_disk(str(directory))


def _gold_choice(task: ConfigurableTask, doc: dict[str, Any]) -> int:
    # As ConfigurableTask.process_results finds it: where every choice has its own context
    # (winogrande), the index of the right one is what the document's text is made from.
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else int(gold)


def training_example(task: ConfigurableTask, doc: dict[str, Any]) -> dict[str, str]:
    """Prompt and gold completion of a document, as lm-eval itself would send and expect them.

    Raises InputError for tasks that neither choose nor generate.
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
            f"task {task.config.task!r} is of type {task.OUTPUT_TYPE}; a patch can be trained for "
            "multiple_choice, generate_until and loglikelihood"
        )
    return {"prompt": prompt, "completion": completion}


def training_examples(
    task: ConfigurableTask, *, limit: int | None = None
) -> Iterator[dict[str, str]]:
    """Training examples of a task; with `limit`, that many, drawn once and for all.

    Raises InputError where the task has no training split.
    """
    if not task.has_training_docs():
        raise InputError(f"task {task.config.task!r} has no training split")
    docs = task.training_docs()
    indices = range(len(docs))
    if limit is not None and limit < len(docs):
        indices = sorted(random.Random(0).sample(indices, limit))
    for index in indices:
        yield training_example(task, docs[index])
