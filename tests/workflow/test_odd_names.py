"""Names that a study or a user chooses are data: no shell runs them, nor are they wildcards."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkout, make_checkout, use_stand_ins

STUDY = "tests/studies/minute.yaml"
TARGETS = ["models/tiny/first", "scores/tiny/first/demo_yes_no.json"]
# A command that a shell would run, and what else splits or expands an unquoted word.
COMMAND = "$(touch PWNED)"
ODD_NAMES = [
    COMMAND,
    "`touch PWNED`",
    "two words",
    "a;touch PWNED",
    "it's",
    "a&b",
    "star*",
    "$HOME",
]


def study_of(checkout: Checkout, **changes: Any) -> str:
    config = checkout.read(STUDY) | changes
    checkout.write("odd.yaml", config)
    return "odd.yaml"


def run(checkout: Checkout, study: str, results: str) -> None:
    targets = [f"{results}/{target}" for target in TARGETS]
    checkout.complete(*targets, "--configfile", study)
    assert all((checkout.directory / target).exists() for target in targets)
    assert not list(checkout.directory.rglob("PWNED")), "a shell ran the name"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_results_can_have_any_name(checkout: Checkout, name: str) -> None:
    use_stand_ins(checkout)
    places = {"results": f"r {name}", "logs": f"l {name}"}
    run(checkout, study_of(checkout, pathvars=places), places["results"])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_recipes_can_have_any_name(checkout: Checkout, name: str) -> None:
    use_stand_ins(checkout)
    recipe = f"{name}.yaml"
    shutil.copy(checkout.directory / "config/axolotl/demo_lora.yaml", checkout.directory / recipe)
    evolutions = checkout.read(STUDY)["evolutions"]
    evolutions["first"]["recipe"] = recipe
    run(checkout, study_of(checkout, evolutions=evolutions), "results")


@pytest.mark.parametrize("name", ["two words", COMMAND, "it's"])
def test_a_checkout_can_have_any_name(tmp_path: Path, name: str) -> None:
    checkout = make_checkout(tmp_path / name)
    use_stand_ins(checkout)
    run(checkout, STUDY, "results")
    assert not list(tmp_path.rglob("PWNED"))


def test_braces_in_texts_are_no_wildcards(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    (checkout.directory / "{word}").mkdir()
    study = study_of(checkout, title="A {word} and {model}", hub_mirror="{word}")
    planned = checkout.counts("--configfile", study)
    assert planned["make_report"] == 1
    run(checkout, study, "results")
