"""Every study in the repository plans exactly the jobs of its configuration."""

import re
import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from conftest import PROJECT, Checkout

# Studies that stand by themselves; the others are laid on top of one of them.
WHOLE = ["config.yaml", "config/real_small.yaml", "config/paper.yaml", "config/temporal.yaml"]
ON_TOP = {
    "config/only_mistral.yaml": "config/paper.yaml",
    "config/first_hour.yaml": "config/paper.yaml",
}
EXISTING = "config/bring_your_own.yaml"
IMPORTED = "config/published_temporal.yaml"


def test_every_study_is_tested() -> None:
    result = {f"config/{path.name}" for path in PROJECT.glob("config/*.yaml")}
    assert result - {"config/schema.yaml"} == {*WHOLE[1:], *ON_TOP, EXISTING, IMPORTED}


DEFAULT_ARMS = {
    "zero-shot": {"trained_on": "none", "applied_to": "all"},
    "fine-tuned": {"trained_on": "base", "applied_to": "base"},
    "ported": {"trained_on": "base", "applied_to": "later"},
    "re-fine-tuned": {"trained_on": "same", "applied_to": "later"},
}


def chains_of(config: dict) -> dict[str, list[str]]:
    """Map each entry to the names of its evolutions."""
    result = {}
    for name, definition in config["evolutions"].items():
        count = definition.get("updates")
        result[name] = [f"{name}-{n + 1}" for n in range(count)] if count else [name]
    return result


def selected(settings: dict, chains: dict[str, list[str]], model: str, place: tuple) -> bool:
    """Whether a table or figure shows a version and task of a model."""
    version, task = place
    versions = [v for name in settings.get("versions", [version]) for v in chains.get(name, [name])]
    tasks, models = settings.get("tasks", [task]), settings.get("models", [model])
    return version in versions and task in tasks and model in models


def expected_counts(config: dict) -> dict[str, int]:
    """Count the jobs of a study without releases from its configuration alone."""
    chosen = config.get("study", {})
    tasks = chosen.get("tasks", list(config["tasks"]))
    seeds = len(chosen.get("seeds", [0]))
    chains = chains_of(config)
    shown = [*config.get("tables", {"norms": {"kind": "norms"}}).values()]
    shown += config.get("figures", {}).values()
    counts = dict.fromkeys(
        ("fetch_model", "pretrain", "preprocess", "evolve", "train_patch", "transplant", "score"), 0
    )
    counts |= dict.fromkeys(("measure_norms", "measure_geometry", "measure_loss_slice"), 0)
    corpora = set()
    for model in chosen.get("models", list(config["models"])):
        definition = config["models"][model]
        wanted = chosen.get("evolutions", list(config["evolutions"]))
        names = [name for name in definition.get("evolutions", wanted) if name in wanted]
        base = definition["base"]
        counts["pretrain" if "from_scratch" in base else "fetch_model"] += 1
        corpora |= {base["from_scratch"]["corpus"]} if "from_scratch" in base else set()
        scored_on = {"base": tasks}
        for name in names:
            evolution = config["evolutions"][name]
            counts["evolve"] += len(chains[name])
            counts["preprocess"] += len(chains[name]) if evolution.get("preprocess") else 0
            parts = range(len(chains[name])) if "updates" in evolution else [None]
            corpora |= {(evolution["corpus"], len(chains[name]), part) for part in parts}
            scored_on |= dict.fromkeys(chains[name], evolution.get("tasks", tasks))
        patches, ports, scores = set(), set(), set()
        for arm in config.get("arms", DEFAULT_ARMS).values():
            applied = arm["applied_to"]
            listed = [applied] if isinstance(applied, str) else applied
            places = {version for name in listed for version in chains.get(name, [name])}
            for version, those in scored_on.items():
                later = applied == "later" and version != "base"
                if not (applied == "all" or later or version in places):
                    continue
                for task in those:
                    scores.add((version, task))
                    trained_on = version if arm["trained_on"] == "same" else arm["trained_on"]
                    if trained_on == "none":
                        continue
                    patches.add((trained_on, task))
                    if trained_on != version:
                        ports.add((version, task, arm.get("method")))
        counts["train_patch"] += len(patches) * seeds
        counts["transplant"] += len(ports) * seeds
        counts["score"] += len(scores)
        compared = {port[:2] for port in ports} & patches
        for rule, kind in (
            ("measure_norms", "norms"),
            ("measure_geometry", "geometry"),
            ("measure_loss_slice", "loss_slices"),
        ):
            places = {
                place
                for settings in shown
                for place in compared
                if settings["kind"] == kind and selected(settings, chains, model, place)
            }
            counts[rule] += len(places) * seeds
    counts |= {"make_corpus": len(corpora), "make_task_data": len(tasks)}
    counts["measure_movement"] = counts["evolve"]
    counts |= {"collect_scores": 1, "make_figure": len(config.get("figures", range(2)))}
    # A study with one seed has no table of seeds.
    tables = config.get("tables", {number: {"kind": ""} for number in range(8)}).values()
    counts["make_table"] = sum(seeds > 1 or table["kind"] != "seeds" for table in tables)
    counts["make_report"] = 1
    return {rule: count for rule, count in counts.items() if count}


@pytest.mark.parametrize("study", WHOLE)
def test_every_study_plans_the_expected_jobs(checkout: Checkout, study: str) -> None:
    config = yaml.safe_load((PROJECT / study).read_text())
    assert checkout.counts("--configfile", study) == expected_counts(config)


def test_the_papers_study_can_be_limited_to_one_model(checkout: Checkout) -> None:
    config = yaml.safe_load((PROJECT / "config/paper.yaml").read_text())
    config["study"]["models"] = ["mistral-7b"]
    top = "config/only_mistral.yaml"
    assert checkout.counts("--configfile", ON_TOP[top], top) == expected_counts(config)


def test_the_first_hour_study_is_short_and_separate(checkout: Checkout) -> None:
    top = "config/first_hour.yaml"
    done = checkout.run("--dry-run", "--configfile", ON_TOP[top], top)
    assert done.returncode == 0, done.stdout[-4000:]
    for rule, count in {"fetch_model": 1, "evolve": 1, "train_patch": 4}.items():
        assert done.stdout.count(f"rule {rule}:\n") == count
    # In results/paper, its settings would redo the results of the paper's study.
    assert "results/first_hour/patches/mistral-7b/base/rte/" in done.stdout
    assert "results/paper/" not in done.stdout


def existing_patch_and_release(checkout: Checkout) -> None:
    """Create the release and patches that the example study uses."""
    config = checkout.read(EXISTING)["models"]["mine"]
    release = tiny.save_model(checkout.directory / config["releases"]["lessons"]["path"])
    for patch in config["patches"].values():
        tiny.save_adapter(checkout.directory / patch["path"], release)


def test_existing_patches_and_releases_train_nothing(checkout: Checkout) -> None:
    existing_patch_and_release(checkout)
    assert checkout.counts("--configfile", EXISTING) == {
        "fetch_model": 1,
        "fetch_patch": 2,
        "make_task_data": 2,
        "transplant": 2,
        "merge": 1,
        "score": 2,
        "collect_scores": 1,
        "make_table": 4,
        "make_report": 1,
    }


def test_an_existing_patch_that_does_not_fit_is_an_error(checkout: Checkout) -> None:
    existing_patch_and_release(checkout)
    other = tiny.save_model(checkout.directory / "other", intermediate_size=48)
    config = checkout.read(EXISTING)
    config["models"]["mine"]["releases"]["lessons"]["path"] = "other"
    checkout.write(EXISTING, config)
    done = checkout.run("--cores", "1", "--configfile", EXISTING)
    assert done.returncode != 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("error: "))
    assert "models.mine.patches.demo_sentiment.path" in line
    assert f"does not fit {other.name}: it changes model.layers.0.mlp" in line


def test_a_named_study_has_its_own_results(checkout: Checkout) -> None:
    jobs = checkout.planned("--configfile", "config/real_small.yaml")
    default = checkout.read("config.yaml")
    named = {wildcards.get("model") for _, wildcards in jobs}
    assert not named & set(default["models"])


def test_studies_compose(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("study: {tasks: [demo_sentiment], evolutions: [lessons], seeds: [1, 2]}\n")
    counts = checkout.counts("--configfile", "config.yaml", str(only))
    assert counts["make_task_data"] == 1
    assert counts["evolve"] == 1
    # Two versions, one task, two seeds.
    assert counts["train_patch"] == 4
    assert counts["score"] == 2


def examples(page: str) -> list[str]:
    """List the YAML blocks of a page."""
    return re.findall(r"^```yaml\n(.*?)^```", (PROJECT / page).read_text(), re.M | re.S)


def test_the_readmes_example_is_a_study(checkout: Checkout) -> None:
    [example] = examples("README.md")
    study = yaml.safe_load(example)
    # The files that the reader has.
    model = study["models"]["mine"]
    release = tiny.save_model(checkout.directory / model["releases"]["v0.2"]["path"])
    tiny.save_adapter(checkout.directory / model["patches"]["boolq"]["path"], release)
    (checkout.directory / "mine.yaml").write_text(example)
    assert checkout.counts("--configfile", "mine.yaml") == {
        "fetch_model": 1,
        "fetch_patch": 1,
        "make_task_data": 1,
        "transplant": 1,
        "merge": 1,
        "score": 1,
        "collect_scores": 1,
        "make_table": 4,
        "make_report": 1,
    }
    # "Name the old model as `base:` and leave `arms:` out".
    model["base"] = {"path": str(tiny.save_model(checkout.directory / "old"))}
    del study["arms"]
    checkout.write("mine.yaml", study)
    counts = checkout.counts("--configfile", "mine.yaml")
    assert (counts["train_patch"], counts["transplant"], counts["score"]) == (1, 1, 2)


def test_examples_of_the_configuration_page_are_studies(checkout: Checkout) -> None:
    overlay, smallest, full = examples("config/README.md")
    for name, text in {"overlay": overlay, "smallest": smallest, "full": full}.items():
        (checkout.directory / f"{name}.yaml").write_text(text)

    counts = checkout.counts("--configfile", "config.yaml", "overlay.yaml")
    # One task and three seeds on the base and on lessons.
    assert (counts["train_patch"], counts["transplant"], counts["score"]) == (6, 3, 2)

    counts = checkout.counts("--configfile", "smallest.yaml")
    assert (counts["evolve"], counts["train_patch"], counts["score"]) == (1, 2, 2)
    assert (counts["make_table"], counts["make_figure"]) == (8, 2)

    # The files that the reader has.
    study = yaml.safe_load(full)
    release = study["models"]["mine"]["releases"]["v0.2"]
    release["path"] = str(tiny.save_model(checkout.directory / "release"))
    tasks = checkout.directory / study["tasks"]["my_task"]["include"]
    tasks.mkdir()
    (tasks / "my_task.yaml").write_text(
        "task: my_task\ndataset_path: mine\ntraining_split: train\n"
    )
    checkout.write("my_axolotl.yaml", {"datasets": [{"type": "alpaca"}]})
    checkout.write("full.yaml", study)
    counts = checkout.counts("--configfile", "full.yaml")
    # The patch of each of two tasks on five versions, as it is and halved.
    assert counts["transplant"] == 2 * 5 * 2
    assert (counts["evolve"], counts["train_patch"], counts["merge"]) == (2, 2, 1)


def test_the_tutorials_study_plans_the_jobs_that_the_page_shows(checkout: Checkout) -> None:
    page = "docs/tutorial.md"
    texts = examples(page)
    mine = checkout.directory / "mine"
    # What the reader has.
    for version in ("v1", "v2"):
        release = tiny.save_model(mine / version)
    tiny.save_adapter(mine / "adapter", release)
    (mine / "study.yaml").write_text(next(text for text in texts if "models:" in text))
    (mine / "retrain.yaml").write_text(next(text for text in texts if "re-fine-tuned:" in text))

    counts = checkout.counts("--configfile", "mine/study.yaml")
    shown = (PROJECT / page).read_text().split("Jobs and disk\n", 1)[1].split("…", 1)[0]
    assert counts == {rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+) ", shown, re.M)}

    retrained = checkout.counts("--configfile", "mine/study.yaml", "mine/retrain.yaml")
    assert "train_patch" not in counts
    assert retrained == {**counts, "train_patch": 1, "make_table": counts["make_table"] + 2}


def test_the_workflows_own_test_runs_in_its_directory(checkout: Checkout) -> None:
    (checkout.directory / ".test").mkdir()
    shutil.copy(PROJECT / ".test/config.yaml", checkout.directory / ".test")
    counts = checkout.counts("--directory", ".test")
    assert (counts["evolve"], counts["train_patch"], counts["score"]) == (1, 2, 2)
    assert not (checkout.directory / ".snakemake").exists()


def test_a_chain_is_evolved_for_its_tasks_alone(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    for task, updates in (("demo_sentiment", 0), ("demo_arithmetic", 5)):
        only.write_text(f"study: {{tasks: [{task}]}}\n")
        counts = checkout.counts("--configfile", "config.yaml", str(only))
        assert (counts["evolve"], counts["score"]) == (3 + updates, 4 + updates)
        # Beside the port of each version, five multiples and two random directions at the last.
        assert counts["transplant"] == 3 + updates + (7 if updates else 0)


def test_a_chain_can_be_selected_and_shortened(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text(
        "study: {evolutions: [update-2]}\narms: {ported-half: {applied_to: update-2}}\n"
    )
    counts = checkout.counts("--configfile", "config.yaml", str(only))
    assert (counts["evolve"], counts["score"]) == (2, 5)


def test_an_evolution_needs_its_parents(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("study: {evolutions: [tales-then-lessons]}\n")
    counts = checkout.counts("--configfile", "config.yaml", str(only))
    assert counts["evolve"] == 2


def test_lint(checkout: Checkout) -> None:
    done = checkout.run("--lint")
    assert done.returncode == 0
    assert "Congratulations" in done.stdout
