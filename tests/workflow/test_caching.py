"""The jobs that an edit triggers, and those that it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkout, copy_state, make_checkout, use_stand_ins

STUDY = "config.yaml"
# The tables of versions, norms, geometry and efficiency read no scores, nor do the figures of
# geometry, loss slices and losses; costs and provenance are those of scores too.
LAST = {"collect_scores": 1, "make_table": 7, "make_figure": 3, "make_report": 1}
# Rules that measure ports against retrained patches.
MEASURED = {"measure_norms": 9, "measure_geometry": 5, "measure_loss_slice": 2}
# Further jobs of new patches: these measurements, all tables but that of versions, all figures.
PATCHED = {**MEASURED, "collect_scores": 1, "make_table": 10, "make_figure": 6, "make_report": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The default study, finished by stand-ins for all programs."""
    checkout = make_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    use_stand_ins(checkout)
    # Tables and figures run in Snakemake's own interpreter, on scores that stand-ins can't make.
    common = checkout.directory / "rules" / "common.smk"
    interpreter = '"python" if WITH_CONDA else sys.executable'
    text = common.read_text()
    assert interpreter in text
    common.write_text(text.replace(interpreter, 'str(python("eval"))'))
    for program in ("make_table.py", "make_figure.py", "make_report.py"):
        (checkout.directory / "workflow_scripts" / program).touch()
    checkout.complete()
    return checkout


@pytest.fixture
def study(finished: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished study, to be edited."""
    return copy_state(finished, tmp_path / "copy")


def edit(study: Checkout, change: Callable[[Any], None]) -> None:
    """Change the study's configuration."""
    config = study.read(STUDY)
    change(config)
    study.write(STUDY, config)


def test_no_change_triggers_no_job(study: Checkout) -> None:
    assert "Nothing to be done" in study.complete("--dry-run")


def test_more_gpus_change_nothing(study: Checkout) -> None:
    assert study.planned("--cores", "all", "--resources", "gpu=4") == []


def test_a_touched_and_reformatted_configuration_changes_nothing(study: Checkout) -> None:
    edit(study, lambda config: None)
    assert study.planned() == []


def test_the_learning_rate_retrains_patches(study: Checkout) -> None:
    edit(study, lambda config: config["patch"].update(learning_rate=0.0123))
    assert study.counts() == {"train_patch": 17, "transplant": 21, "score": 17, **PATCHED}


def append(study: Checkout, file: str, text: str) -> None:
    """Add lines to a file of the library or to a program."""
    path = study.directory / "workflow_scripts" / file
    path.write_text(path.read_text() + text)


def test_comments_and_docstrings_change_nothing(study: Checkout) -> None:
    append(study, "portllm/storage/files.py", "\n\n# A comment.\n")
    path = study.directory / "workflow_scripts/portllm/transplant/methods.py"
    path.write_text('"""Another docstring."""\n' + path.read_text().partition('"""\n\n')[2])
    assert study.planned() == []


def test_changed_code_redoes_what_it_decides(study: Checkout) -> None:
    append(study, "portllm/transplant/methods.py", "\n\nCHANGED = 1\n")
    counts = study.counts()
    assert (counts["transplant"], counts["score"]) == (21, 17)
    assert not {"pretrain", "make_corpus", "make_task_data"} & counts.keys()


def test_a_changed_scoring_program_scores_again(study: Checkout) -> None:
    append(study, "score.py", "\n\nCHANGED = 1\n")
    assert study.counts() == {"score": 17, **LAST}
    done = study.run("--dry-run")
    assert "before: <nothing exclusive>" not in done.stdout
    assert "Params have changed since last execution" in done.stdout
    assert "code " in done.stdout.partition("Params have changed")[2]


def test_a_changed_kind_of_table_redoes_only_its_tables(study: Checkout) -> None:
    append(study, "portllm/reporting/exhibits/trend.py", "\n\nCHANGED = 1\n")
    counts = study.counts()
    kinds = [table.get("kind") for table in study.read(STUDY)["tables"].values()]
    assert counts == {"make_table": kinds.count("trend"), "make_report": 1}


def test_more_frequent_checkpoints_change_nothing(study: Checkout) -> None:
    edit(study, lambda config: config["patch"].update(checkpoint_steps=7))
    assert study.planned() == []


def test_a_new_task_adds_its_jobs(study: Checkout) -> None:
    def add(config: Any) -> None:
        config["tasks"]["again"] = {**config["tasks"]["demo_yes_no"], "lm_eval": "demo_yes_no"}

    edit(study, add)
    jobs = study.planned()
    counts = {
        "make_task_data": 1,
        "train_patch": 4,
        "transplant": 3,
        "score": 4,
        "measure_norms": 3,
    }
    # Nothing is measured of it on the chain.
    assert study.counts() == {**counts, **LAST, "make_table": 9, "make_figure": 4}
    assert {wildcards.get("task", "again") for _, wildcards in jobs} == {"again"}


def test_a_new_evolution_adds_its_jobs(study: Checkout) -> None:
    def add(config: Any) -> None:
        first = next(iter(config["evolutions"].values()))
        config["evolutions"]["further"] = {**first, "seed": 7}

    edit(study, add)
    jobs = study.planned()
    counts = {"evolve": 1, "measure_movement": 1, "train_patch": 3, "transplant": 3, "score": 3}
    # The default study measures norms on versions that it names.
    assert study.counts() == {**counts, **LAST, "make_table": 8, "make_figure": 4}
    named = {"version", "applied_to"}
    places = {wildcards[name] for _, wildcards in jobs for name in named & wildcards.keys()}
    assert places == {"further"}


def test_a_recipe_redoes_its_evolution(study: Checkout) -> None:
    config = study.read(STUDY)
    parent = next(name for name, value in config["evolutions"].items() if value.get("from"))
    parent = config["evolutions"][parent]["from"]
    recipe = study.directory / config["evolutions"][parent]["recipe"]
    alone = study.directory / "config" / "axolotl" / "alone.yaml"
    alone.write_text(recipe.read_text())
    config["evolutions"][parent]["recipe"] = "config/axolotl/alone.yaml"
    study.write(STUDY, config)
    study.complete()
    assert study.planned() == []

    alone.write_text(recipe.read_text() + "\n# another thought\nlearning_rate: 0.0077\n")
    jobs = study.planned()
    evolved = {wildcards["version"] for rule, wildcards in jobs if rule == "evolve"}
    children = {name for name, value in config["evolutions"].items() if value.get("from") == parent}
    assert children
    assert evolved == {parent, *children}
    assert {wildcards["trained_on"] for rule, wildcards in jobs if rule == "train_patch"} == evolved
    assert {wildcards["applied_to"] for rule, wildcards in jobs if rule == "score"} == evolved


def test_an_added_seed_adds_its_jobs(study: Checkout) -> None:
    edit(study, lambda config: config.update(study={"seeds": [1234, 99]}))
    jobs = study.planned()
    # With a second seed there is a table of seeds.
    counts = {"train_patch": 17, "transplant": 21, "score": 17, **PATCHED, "make_table": 11}
    assert study.counts() == counts
    trained = [
        wildcards
        for rule, wildcards in jobs
        if rule in ("train_patch", "transplant", "measure_norms")
    ]
    assert {wildcards["seed"] for wildcards in trained} == {"99"}


def test_a_figures_style_redraws_only_it(study: Checkout) -> None:
    edit(study, lambda config: config["figures"]["recovery"].update(width=5))
    assert study.counts() == {"make_figure": 1, "make_report": 1}


def test_a_caption_rebuilds_only_the_report(study: Checkout) -> None:
    edit(study, lambda config: config["tables"]["main"].update(caption="Other words."))
    assert study.counts() == {"make_report": 1}


def test_a_template_of_captions_triggers_no_job(study: Checkout) -> None:
    (study.directory / "report" / "table.rst").write_text("Other words.")
    assert study.planned() == []


def test_a_changed_table_rebuilds_only_it(study: Checkout) -> None:
    edit(study, lambda config: config["tables"]["main"].update(tasks=["demo_yes_no"]))
    assert study.counts() == {"make_table": 1, "make_report": 1}


def test_the_minimum_gain_redoes_only_tables_with_recovery(study: Checkout) -> None:
    edit(study, lambda config: config.update(recovery={"minimum_gain": 0.1}))
    assert study.counts() == {"make_table": 1, "make_figure": 1, "make_report": 1}


@pytest.mark.parametrize(
    ("setting", "tables", "figures"),
    [
        ({"margin": 3}, ["comparisons"], []),
        ({"resamples": 2000}, ["comparisons", "main", "recovery"], ["recovery"]),
        (
            {"level": 0.9},
            ["comparisons", "main", "recovery", "trend"],
            ["lifetime", "loss-slices", "recovery", "scaling"],
        ),
    ],
)
def test_a_statistics_setting_redoes_only_its_users(
    study: Checkout, setting: dict[str, float], tables: list[str], figures: list[str]
) -> None:
    edit(study, lambda config: config.update(statistics=setting))
    jobs = study.planned()
    assert sorted(wildcards["table"] for rule, wildcards in jobs if rule == "make_table") == tables
    assert (
        sorted(wildcards["figure"] for rule, wildcards in jobs if rule == "make_figure") == figures
    )
    assert {rule for rule, _ in jobs} <= {"make_table", "make_figure", "make_report"}


def test_the_batch_size_of_scoring_scores_again(study: Checkout) -> None:
    edit(study, lambda config: config["scoring"].update(batch_size=7))
    assert study.counts() == {"score": 17, "measure_loss_slice": 2, **LAST, "make_figure": 4}


def test_points_of_loss_slices_redo_only_loss_slices(study: Checkout) -> None:
    edit(study, lambda config: config.update(loss_slices={"points": 5}))
    assert study.counts() == {"measure_loss_slice": 2, "make_figure": 1, "make_report": 1}


def test_a_new_method_ports_and_scores_only_itself(study: Checkout) -> None:
    def add(config: Any) -> None:
        config["methods"]["triple"] = {"kind": "scaled", "scale": 3}
        config["arms"]["ported-triple"] = {**config["arms"]["ported-double"], "method": "triple"}

    edit(study, add)
    assert study.counts() == {"transplant": 1, "score": 1, **LAST}


def test_another_backend_scores_again_in_its_own_environment(study: Checkout) -> None:
    edit(study, lambda config: config["scoring"].update(backend="vllm"))
    assert study.counts() == {"score": 17, **LAST}
    shown = study.run("--dry-run", "--printshellcmds").stdout
    assert "not built yet: vllm." in shown
    commands = [line for line in shown.splitlines() if "$SCORE_PYTHON" in line]
    assert len(commands) == 17
    assert all(" --gpus 1 " in line and " --backend vllm " in line for line in commands)


def test_more_gpus_for_a_stage_trigger_no_job(study: Checkout) -> None:
    edit(study, lambda config: config.update(resources={"score": {"gpu": 4}, "patch": {"gpu": 2}}))
    assert study.planned() == []


def test_a_task_definition_redoes_that_task(study: Checkout) -> None:
    file = study.directory / "resources" / "demo" / "demo_sentiment.yaml"
    file.write_text(file.read_text() + "\n# another thought\n")
    jobs = study.planned()
    assert {wildcards["task"] for _, wildcards in jobs if "task" in wildcards} == {"demo_sentiment"}
    assert study.counts()["train_patch"] == 4


def test_changed_pins_are_reported_and_redo_nothing(study: Checkout) -> None:
    pins = study.directory / "envs" / "train.txt"
    pins.touch()
    assert "train environment" not in study.complete()
    pins.write_text(pins.read_text() + "# another pin\n")
    run = study.complete()
    assert "Nothing to be done" in run
    (line,) = [line for line in run.splitlines() if "envs/train.txt" in line]
    assert "`make envs`" in line
