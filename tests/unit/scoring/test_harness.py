"""Scores of a task equal those of lm-eval's own evaluator, item by item."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import score as program
from portllm.data import tasks
from portllm.errors import InputError
from portllm.scoring import hf
from portllm.scoring.cache import ScoringSettings
from portllm.storage import files

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{train: {rows}, test: {rows}}}}}
output_type: multiple_choice
training_split: train
test_split: test
{few_shot}
doc_to_text: "{{{{question}}}} Answer:"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPARED = ("doc_id", "doc_hash", "prompt_hash", "resps", "filtered_resps", "target")


def write_task(folder: Path, few_shot: str) -> Path:
    """Write a task of eight items, with lm-eval's key for few-shot examples, or without."""
    rows = folder / "rows.jsonl"
    questions = [{"question": f"is {n} so?", "label": n % 2} for n in range(8)]
    files.write_json_lines(rows, questions)
    (folder / "sums.yaml").write_text(TASK.format(rows=rows, few_shot=few_shot))
    return folder


def by_lm_eval(model: Path, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """Score with lm-eval's evaluator, as its command line calls it."""
    output = evaluator.simple_evaluate(
        model=HFLM(pretrained=str(model), batch_size=4, device=DEVICE),
        tasks=["sums"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=10,
        **settings,
    )
    return [{key: row[key] for key in COMPARED} for row in output["samples"]["sums"]]


def as_text(value: Any) -> Any:
    """Convert tuples to lists and numbers to text, as lm-eval writes them."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def check_same(model: Path, folder: Path, settings: ScoringSettings, **lm_eval_s: Any) -> Any:
    """Score with the workflow and with lm-eval, compare each item, and return the task."""
    task = tasks.load("sums", include=str(folder))
    samples = hf.HfScorer(model, settings).score(task, None).samples
    reference = by_lm_eval(model, folder, **lm_eval_s)
    assert [[as_text(row[key]) for key in COMPARED] for row in samples] == [
        [as_text(row[key]) for key in COMPARED] for row in reference
    ]
    return task


@pytest.mark.parametrize(
    ("few_shot", "of_study", "expected"),
    [
        ("num_fewshot: 3", None, 3),
        ("", None, 0),
        ("num_fewshot: 3", 1, 1),
        ("num_fewshot: 3", 0, 0),
        ("num_fewshot: 0", 2, 0),
    ],
)
def test_few_shot_examples_are_lm_eval_s(
    tmp_path: Path, few_shot: str, of_study: int | None, expected: int
) -> None:
    folder = write_task(tmp_path, few_shot)
    model = tiny.save_model(tmp_path / "model", max_position_embeddings=512)
    settings = ScoringSettings(few_shot=of_study, batch_size=4, bootstrap_iterations=10)
    task = check_same(model, folder, settings, num_fewshot=of_study)
    assert task.instances[0].args[0].count("is ") == expected + 1


TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("of_study", "of_lm_eval", "users"),
    [
        ({"chat_template": True}, {"apply_chat_template": True}, 3),
        (
            {"chat_template": True, "system_instruction": "Be.", "fewshot_as_multiturn": False},
            {
                "apply_chat_template": True,
                "system_instruction": "Be.",
                "fewshot_as_multiturn": False,
            },
            1,
        ),
        ({"system_instruction": "Be."}, {"system_instruction": "Be."}, 0),
    ],
)
def test_chats_are_lm_eval_s(
    tmp_path: Path, of_study: dict[str, Any], of_lm_eval: dict[str, Any], users: int
) -> None:
    folder = write_task(tmp_path, "num_fewshot: 2")
    model = tiny.save_model(tmp_path / "model", max_position_embeddings=512)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    settings = ScoringSettings(batch_size=4, bootstrap_iterations=10, **of_study)
    # simple_evaluate's default is to send turns, the command line's without a template is not.
    turns = {"fewshot_as_multiturn": "chat_template" in of_study}
    task = check_same(model, folder, settings, **{**turns, **of_lm_eval})
    prompt = task.instances[0].args[0]
    assert prompt.count("<user>") == users
    assert ("Be." in prompt) == ("system_instruction" in of_study)


def test_a_tokenizer_without_a_chat_template_is_an_error(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    settings = ScoringSettings(chat_template=True)
    with pytest.raises(InputError, match=r"/model: the tokenizer has no chat template; use a chat"):
        program.load_scorer(model, settings, [], gpus=0)
