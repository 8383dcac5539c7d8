"""`snakemake plan` reports the jobs that Snakemake would run, and writes nothing."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, Checkout, run_into_pipe, use_stand_ins

MINUTE = "tests/studies/minute.yaml"
OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


def plan(checkout: Checkout, *arguments: str) -> str:
    done = checkout.run("plan", "--cores", "1", "--quiet", "all", *arguments, **OFFLINE)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def stages(text: str) -> dict[str, tuple[int, int, int, int]]:
    """Parse jobs, cached, to run and GPU jobs of each stage from the first table."""
    table = text.split("Jobs and disk\n")[1].split("\n\n")[0].splitlines()[2:]
    rows = (line.replace(" (temporary)", "").split() for line in table)
    return {row[0]: tuple(map(int, row[1:5])) for row in rows}


def files(checkout: Checkout) -> set[str]:
    """List everything in a checkout except Snakemake's metadata and logs."""
    return {
        str(path.relative_to(checkout.directory))
        for path in checkout.directory.rglob("*")
        if not {".snakemake", "logs", "__pycache__"} & set(path.parts)
    }


def to_run(text: str) -> dict[str, int]:
    return {stage: row[2] for stage, row in stages(text).items() if row[2] and stage != "total"}


@pytest.mark.parametrize(
    "study",
    ["config.yaml", "config/paper.yaml", "config/real_small.yaml", "config/temporal.yaml"],
)
def test_counts_equal_those_of_a_dry_run(checkout: Checkout, study: str) -> None:
    text = plan(checkout, "--configfile", study)
    assert to_run(text) == checkout.counts("--configfile", study)


def test_plan_writes_nothing_and_needs_no_environment(checkout: Checkout) -> None:
    (checkout.directory / ".venvs").unlink()
    before = files(checkout)
    text = plan(checkout)
    assert files(checkout) == before
    assert to_run(text) == checkout.counts()


def test_cached_and_outdated_jobs_are_counted(checkout: Checkout, tmp_path: Path) -> None:
    use_stand_ins(checkout)
    everything = stages(plan(checkout))
    checkout.complete("--until", "train_patch")
    after = stages(plan(checkout))
    assert everything["train_patch"] == (17, 0, 17, 17)
    assert after["train_patch"] == (17, 17, 0, 0)
    assert after["score"] == (17, 0, 17, 17)
    # Another learning rate leaves the files where they are, and none of them is of use.
    changed = tmp_path / "changed.yaml"
    changed.write_text("patch: {learning_rate: 0.5}\n")
    again = plan(checkout, "--configfile", "config.yaml", str(changed))
    assert stages(again)["train_patch"] == (17, 0, 17, 17)
    assert stages(again)["evolve"][1] == 8
    assert re.search(r"^train_patch +17 +settings or code changed$", again, re.M)


def test_the_command_prints_the_same_plan(checkout: Checkout) -> None:
    (checkout.directory / "notes").mkdir()
    only = checkout.directory / "notes" / "only.yaml"
    only.write_text("study: {tasks: [demo_sentiment], seeds: [1]}\n")
    python = PROJECT / ".venvs" / "eval" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "portllm", "plan", "--configfile", "../config.yaml", "only.yaml"],
        cwd=only.parent,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "workflow_scripts")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    expected = plan(checkout, "--configfile", "config.yaml", "notes/only.yaml")
    assert stages(done.stdout) == stages(expected)
    assert stages(expected)["make_task_data"][0] == 1


def test_options_reach_the_plan(checkout: Checkout, tmp_path: Path) -> None:
    only = tmp_path / "only.yaml"
    only.write_text("study: {tasks: [demo_sentiment], seeds: [1, 2]}\n")
    text = plan(checkout, "--configfile", "config.yaml", str(only))
    assert stages(text)["make_task_data"][0] == 1
    assert stages(text)["train_patch"][0] == 8


def test_the_papers_study_is_estimated_offline(checkout: Checkout) -> None:
    text = plan(checkout, "--configfile", "config/paper.yaml")
    for number in ("7,241,732,096", "6,738,415,616", "8,030,261,248", "9,241,705,984"):
        assert number in text
    assert "14.5 GB" in text
    assert "unknown" not in text
    # Micro batch, accumulated batches and devices: 32 sequences an update for both.
    table = text.split("Sequences per update of each evolution\n")[1].split("\n\n")[0]
    rows = {row.split()[0]: row.split()[1:5] for row in table.splitlines()[2:]}
    assert rows["openorca"] == ["4", "8", "1", "32"]
    assert rows["openorca-full"] == ["2", "4", "4", "32"]
    assert "arXiv 2205.05198" in text


def test_an_unknown_model_is_reported(checkout: Checkout) -> None:
    config = checkout.read("config.yaml")
    config["models"]["demo"]["base"] = {"hub": "someone/something-new"}
    checkout.write("config.yaml", config)
    text = plan(checkout)
    reason = "someone/something-new: unknown architecture; fetch the model"
    assert reason in text
    assert f"Warning: {reason}" in checkout.run("--dry-run", "--cores", "1").stdout
    assert stages(text)["train_patch"][0] == 17
    assert "+ ?" in text


def test_an_invalid_study_is_an_error(checkout: Checkout) -> None:
    config = checkout.read("config.yaml")
    config["evolutions"]["tales"]["corpus"] = "tails"
    checkout.write("config.yaml", config)
    done = checkout.run("plan", "--cores", "1")
    assert done.returncode != 0
    assert "no corpus named 'tails'; nearest: tales" in done.stdout


def test_a_study_ten_times_the_papers_is_planned(checkout: Checkout) -> None:
    config = yaml.safe_load((PROJECT / "config" / "paper.yaml").read_text())
    for model in config["models"].values():
        model.pop("evolutions", None)
    first = config["evolutions"]["openorca"]
    config["evolutions"] = {f"openorca{index}": first for index in range(40)}
    config |= {"tables": {"main": {"kind": "main"}}}
    checkout.write("config.yaml", config)
    text = plan(checkout)
    # 4 models x 41 versions x 7 tasks.
    assert stages(text)["train_patch"][0] == 1148


@pytest.mark.parametrize("pipe", ["| true", "| head -n 1", "2>&1 | head -n 60"])
def test_plan_ends_quietly_when_its_reader_closes(checkout: Checkout, pipe: str) -> None:
    use_stand_ins(checkout)
    # With 60 lines the reader leaves after the table, and the end of the job cannot be reported.
    errors = run_into_pipe(checkout, f"plan --configfile {MINUTE} {pipe}")
    assert "rror" not in errors
    assert "Traceback" not in errors
