"""A study runs no code of its own unless it says so."""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Checkout

from portllm.study import custom_code

STUDY = "tests/studies/minute.yaml"
CONSENT = "read it, then set allow_custom_code: true in the study"
LEFT_BY_CODE = "RAN"
CODE = f"open({LEFT_BY_CODE!r}, 'w').close()\n\ndef rows():\n    yield {{'text': 'a'}}\n"
TASK = "task: mine\ntraining_split: train\ndoc_to_text: '{{question}}'\n"


def add_generator(study: Any) -> None:
    study["corpora"]["tales"]["sources"] = [{"generator": "own/code.py:rows"}]


def add_task(study: Any) -> None:
    study["tasks"]["mine"] = {"include": "own"}


def add_plugin(study: Any) -> None:
    study["evolutions"]["first"]["overrides"]["plugins"] = ["own.code.Plugin"]


def add_linked_generator(study: Any) -> None:
    """A link in the workflow's folder leads out of it."""
    study["corpora"]["tales"]["sources"] = [{"generator": "resources/linked.py:rows"}]


@pytest.fixture
def own(checkout: Checkout) -> Checkout:
    folder = checkout.directory / "own"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "mine.yaml").write_text(TASK)
    (checkout.directory / "resources" / "linked.py").symlink_to(folder / "code.py")
    return checkout


@pytest.mark.parametrize(
    ("add", "place", "code"),
    [
        (add_generator, "corpora.tales.sources.0.generator", "own/code.py:rows"),
        (add_linked_generator, "corpora.tales.sources.0.generator", "resources/linked.py:rows"),
        (add_task, "tasks.mine.include", "own/mine.yaml"),
        (add_plugin, "evolutions.first.recipe", "plugins: own.code.Plugin"),
    ],
)
def test_code_of_the_study_needs_consent(
    own: Checkout, add: Callable[[Any], None], place: str, code: str
) -> None:
    study = own.read(STUDY)
    add(study)
    own.write("own.yaml", study)
    done = own.run("--dry-run", "--configfile", "own.yaml")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(
        f"own.yaml: {place}: the study runs code that does not come with the workflow: "
        f"{code}; {CONSENT}"
    )
    own.write("own.yaml", study | {"allow_custom_code": True})
    plan = own.run("plan", "--cores", "1", "--configfile", "own.yaml").stdout
    (line,) = (line for line in plan.splitlines() if code in line)
    assert line.split() == [place, *code.split(), "the", "study"]
    assert not list(own.directory.rglob(LEFT_BY_CODE))


@pytest.mark.parametrize(
    ("recipe", "codes"),
    [
        ({}, []),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, []),
        ({"plugins": ["mine.Plugin"]}, ["plugins: mine.Plugin"]),
        ({"trainer_cls": "mine.Trainer"}, ["trainer_cls: mine.Trainer"]),
        ({"trl": {"reward_funcs": ["mine.reward"]}}, ["trl.reward_funcs: mine.reward"]),
        ({"trl": {"rollout_func": "mine.rollout"}}, ["trl.rollout_func: mine.rollout"]),
        ({"trust_remote_code": True}, ["trust_remote_code"]),
        ({"trust_remote_code": False, "trl": None, "datasets": None}, []),
        ({"datasets": [{"type": "alpaca.load_no_prompt"}, {"type": {"field": "text"}}]}, []),
        ({"datasets": [{"type": "mine.strategy"}]}, ["datasets[].type: mine.strategy"]),
        ({"datasets": [{"trust_remote_code": True}]}, ["datasets[].trust_remote_code"]),
        ({"pretraining_dataset": {"type": "mine.x"}}, ["pretraining_dataset[].type: mine.x"]),
    ],
)
def test_recipes_name_code(recipe: dict[str, Any], codes: list[str]) -> None:
    assert list(custom_code.code_of_recipe(recipe)) == codes
