"""Training text equals lm-eval's own prompts and gold answers, byte for byte."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from portllm.data import task_files, tasks
from portllm.errors import InputError

DEMO = "resources/demo"

DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"passage": "Snow is frozen water.", "question": "is snow water", "label": 1},
        {"passage": "Ice floats.", "question": "does ice sink", "label": 0},
    ],
    "winogrande": [
        {
            "sentence": "The cup did not fit the box because _ was too big.",
            "option1": "the cup",
            "option2": "the box",
            "answer": "1",
        },
        {
            "sentence": "Ann paid Bea because _ had worked.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "2",
        },
    ],
    "gsm8k": [
        {
            "question": "Ann has 3 pens and buys 4. How many has she?",
            "answer": "She has 3+4=<<3+4=7>>7 pens.\n#### 7",
        }
    ],
}
GOLD = {"boolq": [" yes", " no"], "gsm8k": [" She has 3+4=<<3+4=7>>7 pens.\n#### 7"]}


def task_on(name: str, documents: list[dict[str, Any]]) -> Any:
    """lm-eval's unmodified task, with `documents` in all splits that it uses."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    path = task_files.find(name, [task_files.library()])
    assert path is not None
    definition = load_yaml(path, resolve_func=True)
    definition.pop("tag", None)
    rows = datasets.Dataset.from_list(documents)
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    definition["custom_dataset"] = lambda **_: datasets.DatasetDict(splits)
    return ConfigurableTask(config=definition)


def requests_of(task: Any, index: int) -> list[Any]:
    """The requests that lm-eval sends for one document, zero-shot."""
    task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests()
    return [request for request in task.instances if request.doc_id == index]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_longest_request_is_recorded(name: str) -> None:
    task = task_on(name, DOCUMENTS[name])
    sent = [r.args for index in range(len(DOCUMENTS[name])) for r in requests_of(task, index)]
    # gsm8k's answers are generated: at most 256 tokens of four characters.
    answers = (4 * 256 if isinstance(answer, dict) else len(answer) for _, answer in sent)
    lengths = [len(prompt) + length for (prompt, _), length in zip(sent, answers, strict=True)]
    assert tasks.request_lengths(task) == {
        "requests": len(lengths),
        "longest_request": max(lengths),
        "mean_request": sum(lengths) // len(lengths),
        "generated_tokens": 256 if name == "gsm8k" else 0,
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_training_text_is_what_lm_eval_sends(name: str) -> None:
    task = task_on(name, DOCUMENTS[name])
    examples = list(tasks.training_examples(task))
    assert len(examples) == len(DOCUMENTS[name])
    for index, example in enumerate(examples):
        requests = requests_of(task, index)
        if task.OUTPUT_TYPE == "multiple_choice":
            sent = [tuple(request.args[:2]) for request in requests]
            gold = (example["prompt"], example["completion"])
            # lm-eval's own scoring confirms which of its requests is the gold one.
            answers = [(0.0 if pair == gold else -9.0, False) for pair in sent]
            assert gold in sent
            assert task.process_results(task.training_docs()[index], answers)["acc"] == 1.0
        else:
            assert example["prompt"] == requests[0].args[0]
        if name in GOLD:
            assert example["completion"] == GOLD[name][index]


def test_winogrande_puts_the_choice_into_the_prompt() -> None:
    examples = list(tasks.training_examples(task_on("winogrande", DOCUMENTS["winogrande"])))
    assert examples[0]["prompt"].endswith("because the cup")
    assert examples[1]["prompt"].endswith("because Bea")
    assert examples[1]["completion"] == " had worked."


def test_a_limit_draws_the_same_items_every_time() -> None:
    documents = [
        {"passage": str(number), "question": "q", "label": number % 2} for number in range(50)
    ]
    task = task_on("boolq", documents)
    first = list(tasks.training_examples(task, limit=10))
    assert len(first) == 10
    assert first == list(tasks.training_examples(task, limit=10))
    assert first != list(tasks.training_examples(task))[:10]


def test_a_saved_dataset_gives_the_same_task(tmp_path: Path) -> None:
    task = tasks.load("demo_sentiment", include=DEMO)
    tasks.save_dataset(task, tmp_path / "dataset")
    again = tasks.load("demo_sentiment", include=DEMO, dataset=tmp_path / "dataset")
    assert list(again.eval_docs) == list(task.eval_docs)
    assert list(again.training_docs()) == list(task.training_docs())


def test_unknown_tasks_and_tasks_without_training_split_are_errors() -> None:
    with pytest.raises(InputError, match=r"no task 'demo_sentimental'; nearest: demo_sentiment"):
        tasks.load("demo_sentimental", include=DEMO)
    task = task_on("boolq", DOCUMENTS["boolq"])
    task.config.training_split = None
    with pytest.raises(InputError, match=r"no training split"):
        next(tasks.training_examples(task))


def test_empty_splits_are_errors(tmp_path: Path) -> None:
    import datasets

    task = tasks.load("demo_sentiment", include=DEMO)
    tasks.save_dataset(task, tmp_path / "dataset")
    splits = datasets.load_from_disk(str(tmp_path / "dataset"))
    for split, use in (
        (task.config.training_split, lambda task: list(tasks.training_examples(task))),
        (task.config.test_split or task.config.validation_split, lambda task: None),
    ):
        directory = tmp_path / split
        datasets.DatasetDict({**splits, split: splits[split].select([])}).save_to_disk(directory)
        with pytest.raises(InputError, match=r"^task 'demo_sentiment': .* (has no items|expected)"):
            use(tasks.load("demo_sentiment", include=DEMO, dataset=directory))


def test_a_task_file_that_includes_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: one\ninclude: two.yaml\n")
    (tmp_path / "two.yaml").write_text("include: one.yaml\n")
    with pytest.raises(InputError, match=r"one\.yaml: include: found a file that includes this"):
        tasks.load("one", include=str(tmp_path))


def test_tasks_that_execute_generated_code_need_permission(tmp_path: Path) -> None:
    (tmp_path / "risky.yaml").write_text("task: risky\nunsafe_code: true\ntraining_split: train\n")
    with pytest.raises(InputError, match=r"executes code.*allow_unsafe_code: true"):
        tasks.load("risky", include=str(tmp_path))


def test_tasks_defined_by_a_class_are_an_error() -> None:
    with pytest.raises(InputError, match=r"Python class"):
        tasks.load("squadv2")


def test_defining_files_include_python_modules() -> None:
    path = task_files.find("demo_sentiment", [Path(DEMO)])
    assert path is not None
    names = [file.name for file in task_files.defining_files(path)]
    assert names == ["demo_sentiment.yaml", "generate.py"]


# Folders with quoted keys, includes, groups, tags and classes.
@pytest.mark.parametrize("folder", ["mmlu/default", "mmlu/generative", "glue", "squadv2"])
def test_the_tasks_of_lm_eval_s_index_are_known(folder: str) -> None:
    index = TaskIndex.build([task_files.library() / folder])
    indexed = {name: entry for name, entry in index.items() if "TASK" in entry.kind.name}
    assert indexed
    assert task_files.names([task_files.library() / folder]) == sorted(indexed)
    name, entry = next(iter(indexed.items()))
    assert task_files.find(name, [task_files.library()]) == entry.yaml_path
    for tag in (name for name, entry in index.items() if entry.kind.name == "TAG"):
        members = task_files.group_members(tag, [task_files.library() / folder])
        assert sorted(members) == sorted(index[tag].tags)


def test_a_group_is_no_task_and_its_tasks_are_named() -> None:
    message = r"'mmlu' is a group, expected a single task; .* its 57 tasks .*: mmlu_abstract_alg"
    with pytest.raises(InputError, match=message):
        tasks.load("mmlu")


def test_definitions_agree_with_lm_eval() -> None:
    for name in ("boolq", "sst2", "mrpc", "rte", "winogrande", "wnli", "gsm8k", "arc_easy"):
        path = task_files.find(name, [task_files.library()])
        assert path is not None
        definition = task_files.load(path)
        reference = load_yaml(path, resolve_func=False)
        assert definition["task"] == reference["task"] == name
        assert definition["training_split"] == reference["training_split"]
