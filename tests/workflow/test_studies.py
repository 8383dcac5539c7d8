"""Every study in the repository can be planned, and plans what its configuration says."""

from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, Checkout

STUDIES = ["config.yaml", *(f"config/{path.name}" for path in PROJECT.glob("config/*.yaml"))]
STUDIES.remove("config/schema.yaml")


def expected_counts(config: dict) -> dict[str, int]:
    """Jobs of a study with the default arms and tables, counted from its text alone."""
    models, tasks = len(config["models"]), len(config["tasks"])
    evolutions, seeds = len(config["evolutions"]), len(config.get("study", {}).get("seeds", [0]))
    versions = 1 + evolutions
    used = {evolution["corpus"] for evolution in config["evolutions"].values()}
    used |= {model["base"]["from_scratch"]["corpus"] for model in config["models"].values()}
    return {
        "corpus": len(used),
        "pretrain": models,
        "task_data": tasks,
        "evolve": models * evolutions,
        "movement": models * evolutions,
        "patch": models * versions * tasks * seeds,
        "transplant": models * evolutions * tasks * seeds,
        "score": models * versions * tasks,
        "scores": 1,
        "table": 3,
        "figure": 1,
    }


@pytest.mark.parametrize("study", STUDIES)
def test_dry_run(checkout: Checkout, study: str) -> None:
    config = yaml.safe_load((PROJECT / study).read_text())
    assert checkout.counts("--configfile", study) == expected_counts(config)


def test_a_named_study_stands_by_itself(checkout: Checkout) -> None:
    jobs = checkout.planned("--configfile", "config/real_small.yaml")
    default = checkout.read("config.yaml")
    named = {wildcards.get("model") for _, wildcards in jobs}
    assert not named & set(default["models"])


def test_studies_compose(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("study: {tasks: [demo_sentiment], evolutions: [lessons], seeds: [1, 2]}\n")
    counts = checkout.counts("--configfile", "config.yaml", str(only))
    assert counts["task_data"] == 1
    assert counts["evolve"] == 1
    # Two versions, one task, two seeds.
    assert counts["patch"] == 4
    assert counts["score"] == 2


def test_an_evolution_brings_its_parents(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("study: {evolutions: [tales-then-lessons]}\n")
    counts = checkout.counts("--configfile", "config.yaml", str(only))
    assert counts["evolve"] == 2


def test_lint(checkout: Checkout) -> None:
    done = checkout.run("--lint")
    assert done.returncode == 0
    assert "Congratulations" in done.stdout
