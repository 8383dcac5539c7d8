"""The workflow run from another directory, and as a module of another workflow."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import Checkout, make_checkout, use_stand_ins

PATCH = "results/patches/demo/base/demo_yes_no/seed1234"
JOBS = 118
MODULE = """
module portllm:
    snakefile: "../checkout/Snakefile"
    config: config["study"]
{settings}

rule everything:
    input: "{target}"

use rule * from portllm as portllm_*
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """The project with stand-ins."""
    checkout = make_checkout(tmp_path / "checkout")
    use_stand_ins(checkout)
    return checkout


@pytest.fixture
def study(checkout: Checkout) -> Checkout:
    """An empty directory beside the checkout, whose default study sets `max_steps: 7`."""
    directory = checkout.directory.with_name("study")
    directory.mkdir()
    config = checkout.read("config.yaml")
    config["patch"]["max_steps"] = 7
    study = Checkout(directory)
    study.write("mine.yaml", {"study": config})
    return study


def add_module(study: Checkout, target: str = PATCH, settings: str = "", more: str = "") -> None:
    """Write a workflow that imports the checkout's."""
    text = MODULE.format(target=target, settings=settings) + more
    (study.directory / "Snakefile").write_text('configfile: "mine.yaml"\n' + text)


def test_another_directory_gets_the_results(checkout: Checkout, study: Checkout) -> None:
    place = ("--snakefile", "checkout/Snakefile", "--directory", "study")
    above = Checkout(checkout.directory.parent)
    assert len(above.planned(*place)) == JOBS
    above.complete(*place, PATCH)
    assert (study.directory / PATCH).is_dir()
    assert not (checkout.directory / "results").exists()

    # What a job is made from and with has the same name wherever the checkout is.
    checkout.directory.rename(checkout.directory.with_name("moved"))
    place = ("--snakefile", "moved/Snakefile", "--directory", "study")
    assert "Nothing to be done" in above.complete(*place, PATCH)


def test_a_study_in_the_working_directory_replaces_the_default_study(
    checkout: Checkout, study: Checkout
) -> None:
    config = study.read("mine.yaml")["study"]
    recipe = config["evolutions"]["tales"]["recipe"]
    own = study.directory / recipe
    own.parent.mkdir(parents=True)
    shutil.copy(checkout.directory / recipe, own)
    study.write("config.yaml", config)
    shown = study.complete("--snakefile", "../checkout/Snakefile", "--dry-run", "-p", PATCH)
    assert "--max-steps 7" in shown
    inputs = study.complete("--snakefile", "../checkout/Snakefile", "--dry-run")
    recipes = re.findall(r"\S*config/axolotl/\w+\.yaml", inputs)
    # The study's own file wins; the other comes with the workflow.
    assert set(recipes) == {recipe, ".snakemake/portllm/config/axolotl/demo_full.yaml"}


def test_a_missing_file_is_reported_with_both_places(checkout: Checkout, study: Checkout) -> None:
    config = study.read("mine.yaml")["study"]
    config["evolutions"]["tales"]["recipe"] = "config/axolotl/missing.yaml"
    study.write("config.yaml", config)
    run = study.run("--snakefile", "../checkout/Snakefile", "--dry-run")
    assert run.returncode == 1
    assert (
        "error: config.yaml: evolutions.tales.recipe: config/axolotl/missing.yaml exists neither "
        f"in the working directory ({study.directory}) nor in the workflow's directory "
        f"({checkout.directory})"
    ) in run.stdout


def test_config_files_are_checked_from_another_directory(
    checkout: Checkout, study: Checkout
) -> None:
    lists = [f"a{index}: &a{index} [{9 * f'*a{index - 1}, '}]" for index in range(1, 10)]
    (study.directory / "mine.yaml").write_text("\n".join(["a0: &a0 [x]", *lists]))
    run = study.run(
        "--snakefile", "../checkout/Snakefile", "--dry-run", "--configfile", "mine.yaml"
    )
    assert "error: mine.yaml: line 6: found a value of over 1,000,000 characters" in run.stdout
    (study.directory / "mine.yaml").rename(study.directory / "config.yaml")
    run = checkout.run("--directory", "../study", "--dry-run")
    assert "config.yaml: line 6: found a value of over 1,000,000 characters" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_module_with_renamed_rules_and_its_own_configuration(study: Checkout) -> None:
    add_module(study)
    shown = study.complete("--dry-run", "--printshellcmds")
    assert "--max-steps 7" in shown
    assert "localrules directive" not in shown
    # The importing workflow keeps its default target.
    rules = {"portllm_make_corpus", "portllm_pretrain", "portllm_make_task_data"}
    assert study.counts() == dict.fromkeys([*rules, "portllm_train_patch", "everything"], 1)
    assert len(study.planned("portllm_all")) == JOBS + 1
    study.complete()
    assert (study.directory / PATCH).is_dir()
    assert "Nothing to be done" in study.complete()
    plan = study.complete("portllm_plan")
    assert "To run: 0 of 4 jobs" in plan


def test_devices_are_limited_by_the_rules_names_in_the_run(study: Checkout) -> None:
    add_module(study)
    limits = ("--resources", "gpu=1", "--set-resources", "portllm_train_patch:gpu=2")
    run = study.run("--dry-run", "--cores", "1", *limits)
    assert run.returncode == 1
    assert "--set-resources train_patch:gpu=2: the run may use 1 devices" in run.stdout


def test_a_module_with_a_prefix_for_paths_and_a_changed_rule(study: Checkout) -> None:
    """A changed rule has Snakemake read the module twice."""
    changed = "use rule train_patch from portllm as portllm_train_patch with:\n    threads: 2\n"
    add_module(study, f"sub/{PATCH}", '    prefix: "sub"', changed)
    study.complete()
    assert (study.directory / "sub" / PATCH).is_dir()
    assert not (study.directory / "results").exists()


def test_a_module_without_configuration_runs_the_default_study(study: Checkout) -> None:
    add_module(study)
    snakefile = study.directory / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace('    config: config["study"]\n', ""))
    shown = study.complete("--dry-run", "--printshellcmds")
    assert "--max-steps 300" in shown
