"""The demo's evaluation items are disjoint, balanced, reproducible and in no training text."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from portllm.data import corpora, tasks

DEMO = "resources/demo"
TASKS = ("demo_yes_no", "demo_sentiment", "demo_arithmetic")


def prompts(task: Any, docs: Any) -> list[str]:
    return [tasks.training_example(task, doc)["prompt"] for doc in docs]


@pytest.mark.parametrize("name", TASKS)
def test_training_and_evaluation_items_are_disjoint(name: str) -> None:
    task = tasks.load(name, include=DEMO)
    training = prompts(task, task.training_docs())
    evaluation = prompts(task, task.eval_docs)
    assert len(evaluation) >= 400
    assert len(set(evaluation)) == len(evaluation)
    assert not set(training) & set(evaluation)


@pytest.mark.parametrize("name", TASKS)
def test_items_are_reproducible(name: str) -> None:
    first, again = (tasks.load(name, include=DEMO) for _ in range(2))
    assert list(first.eval_docs) == list(again.eval_docs)


@pytest.mark.parametrize("name", ["demo_yes_no", "demo_sentiment"])
def test_choices_are_balanced(name: str) -> None:
    task = tasks.load(name, include=DEMO)
    answers = [tasks.training_example(task, doc)["completion"] for doc in task.eval_docs]
    counts = [answers.count(answer) for answer in set(answers)]
    assert len(counts) == 2
    assert abs(counts[0] - counts[1]) <= 0.02 * len(answers)


@pytest.mark.parametrize("corpus", ["pretraining", "tales", "lessons"])
def test_no_evaluation_item_is_in_a_corpus(corpus: str) -> None:
    arguments = {"seed": 5, "documents": 2000}
    rows = corpora.generated(f"{DEMO}/generate.py:{corpus}", arguments)
    text = "\n".join("\n".join(row.values()) for row in rows)
    assert len(text) > 50_000
    for name in TASKS:
        task = tasks.load(name, include=DEMO)
        for prompt in prompts(task, task.eval_docs):
            assert prompt not in text
            assert prompt.splitlines()[-2] not in text


def test_generators_depend_on_their_seed_only() -> None:
    spec = importlib.util.spec_from_file_location("generate", Path(DEMO, "generate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, again, other = (list(module.pretraining(seed, 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
