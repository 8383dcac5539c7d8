"""The examples of docs/extending.md work when a reader follows the page."""

import json
import re
import subprocess
from pathlib import Path

import numpy
import pytest
import tiny
from conftest import PROJECT, Checkout, make_checkout

from portllm.transplant import edits
from portllm.weights import adapters

BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (PROJECT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL
)


def block(language: str, text: str) -> str:
    """The page's block in a language that contains a text."""
    (found,) = (code for name, code in BLOCKS if name == language and text in code)
    return found


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout to which everything on the page has been added."""
    checkout = make_checkout(tmp_path_factory.mktemp("page") / "checkout")
    files = {
        "workflow_scripts/measure_effective_rank.py": block("python", "effective rank"),
        "rules/effective_rank.smk": block("snakemake", "rule measure_effective_rank"),
        "half_rank.yaml": block("yaml", "kind: truncated"),
        "workflow_scripts/portllm/reporting/exhibits/best.py": block("python", "class BestTable"),
        "best.yaml": block("yaml", "kind: best"),
    }
    for path, text in files.items():
        (checkout.directory / path).write_text(text)
    appended = {
        "workflow_scripts/portllm/transplant/methods.py": block("python", "def truncated"),
        "Snakefile": 'include: "rules/effective_rank.smk"\n',
    }
    for path, text in appended.items():
        file = checkout.directory / path
        file.write_text(f"{file.read_text()}\n\n{text}")
    return checkout


def run(checkout: Checkout, program: str, *arguments: str | Path) -> None:
    python = PROJECT / ".venvs/eval/bin/python"
    script = checkout.directory / "workflow_scripts" / program
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a patch of rank 4."""
    place = tmp_path_factory.mktemp("models")
    model = tiny.save_model(place / "model")
    return model, tiny.save_adapter(place / "patch", model, r=4)


def changes(patch: Path) -> dict[str, numpy.ndarray]:
    """The change of each weight, (out, in)."""
    deltas = edits.deltas_of(adapters.load(patch))
    return {name: delta.factor * delta.b @ delta.a for name, delta in deltas.items()}


def test_the_method_keeps_the_largest_directions(
    extended: Checkout, patch: tuple[Path, Path], tmp_path: Path
) -> None:
    model, adapter = patch
    options = ["--base", model, "--patch", adapter, "--adapter", tmp_path / "port"]
    method = ["--method", "truncated", "--parameter", "directions=2"]
    run(extended, "transplant.py", *options, *method)
    before, after = changes(adapter), changes(tmp_path / "port")
    assert before.keys() == after.keys()
    for name, change in before.items():
        values = numpy.linalg.svd(change, compute_uv=False)
        error = numpy.linalg.norm(change - after[name], 2)
        # The best approximation of rank 2 misses the third singular value, and no more.
        assert error == pytest.approx(values[2], rel=1e-4)
        assert error > 0


def test_the_table_shows_the_best_arm(extended: Checkout) -> None:
    scores = extended.directory / "results/scores.csv"
    scores.parent.mkdir()
    cell = 'tiny,sst2,first,{},direct,1,"acc,none",{},0.01,100\n'
    header = "model,task,applied_to,trained_on,method,seed,metric,value,stderr,n\n"
    scores.write_text(header + cell.format("base", 0.75) + cell.format("first", 0.5))
    arms = {
        "ported": {"trained_on": "base", "applied_to": "later", "method": "direct"},
        "re-fine-tuned": {"trained_on": "same", "applied_to": "later", "method": "direct"},
    }
    python = PROJECT / ".venvs/workflow/bin/python"
    program = extended.directory / "workflow_scripts/make_table.py"
    outputs = [extended.directory / f"best.{suffix}" for suffix in ("csv", "md", "tex")]
    settings = json.dumps({"kind": "best", "arms": arms})
    subprocess.run(
        [python, program, scores, "--settings", settings, "--output", *outputs], check=True
    )
    lines = outputs[1].read_text().splitlines()
    assert lines[2].split("|")[2:6] == [" first     ", " ported ", " sst2   ", " 75.0 ± 1.0 "]


def test_the_program_measures_the_effective_rank(
    extended: Checkout, patch: tuple[Path, Path], tmp_path: Path
) -> None:
    _, adapter = patch
    output = tmp_path / "ranks.json"
    run(extended, "measure_effective_rank.py", "--patch", adapter, "--output", output)
    ranks = json.loads(output.read_text())
    assert ranks.keys() == changes(adapter).keys()
    assert all(1 < rank <= 4 for rank in ranks.values())


def test_a_study_schedules_the_method_the_table_and_the_stage(extended: Checkout) -> None:
    (command,) = (code for name, code in BLOCKS if name == "console")
    target = command.split()[-1]
    studies = ("config.yaml", "half_rank.yaml", "best.yaml")
    planned = extended.planned("all", target, "--configfile", *studies)
    methods = {names["method"] for rule, names in planned if rule == "transplant"}
    assert "half-rank" in methods
    assert ("make_table", {"table": "best"}) in planned
    rules = {rule for rule, _ in planned}
    assert {"pretrain", "train_patch", "measure_effective_rank"} <= rules
