"""A minute-sized study that really runs every stage, on CPU."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy
import pandas
import pytest
import yaml
from conftest import MINUTE, PROJECT, Checkout, copy_state, run_program
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from portllm.comparison import score_table
from portllm.snakemake_hooks.program_code import ProgramCode
from portllm.storage import files, manifests
from portllm.weights.checkpoints import Checkpoint

pytestmark = pytest.mark.slow

CONFIG = ("--configfile", MINUTE)
DEMO = str(PROJECT / "resources" / "demo")


@pytest.fixture(scope="module")
def finished(minute_study: Checkout) -> Checkout:
    """The finished study."""
    return minute_study


@pytest.fixture(scope="module")
def results(finished: Checkout) -> Path:
    return finished.directory / "results"


def test_a_second_run_does_nothing(finished: Checkout) -> None:
    assert "Nothing to be done" in finished.complete(*CONFIG)


def test_every_cell_is_scored_once(results: Path) -> None:
    table = score_table.read(results / "scores.csv")
    assert list(table.columns) == score_table.COLUMNS
    cells = table[["task", "applied_to", "trained_on", "method", "metric"]]
    assert not cells.duplicated().any()
    # base: un-patched, fine-tuned; first: un-patched, ported; second: those, half, re-fine-tuned.
    per_task = {"base": 2, "first": 2, "second": 4}
    # The chain is for one of the tasks; un-patched and ported.
    chain = {f"update-{number}": 2 for number in (1, 2, 3)}
    for task, metrics, more in (("demo_yes_no", 1, chain), ("demo_arithmetic", 2, {})):
        counts = table[table["task"] == task]["applied_to"].value_counts().to_dict()
        expected = {version: cells * metrics for version, cells in per_task.items()}
        assert counts == expected | more
    assert (table["n"] == 40).all()
    assert table["value"].between(0, 1).all()
    assert set(table["seed"]) == {"none", "1234"}


def test_scores_equal_the_means_of_their_items(results: Path) -> None:
    table = score_table.read(results / "scores.csv")
    for path in results.glob("scores/tiny/*/*.samples.jsonl"):
        rows = pandas.DataFrame(files.read_json_lines(path))
        rows["seed"] = ["none" if pandas.isna(seed) else str(int(seed)) for seed in rows["seed"]]
        keys = ["trained_on", "method", "seed", "filter"]
        assert len(rows) >= 80
        for (trained_on, method, seed, variant), group in rows.groupby(keys):
            for metric in group["metrics"].iloc[0]:
                value = group["metrics"].map(lambda values, name=metric: values[name]).mean()
                row = table[
                    (table["applied_to"] == path.parent.name)
                    & (table["task"] == path.name.partition(".")[0])
                    & (table["trained_on"] == trained_on)
                    & (table["method"] == method)
                    & (table["seed"] == seed)
                    & (table["metric"] == f"{metric},{variant}")
                ]
                assert row["value"].tolist() == pytest.approx([value])


def test_tables_show_the_scores(results: Path) -> None:
    table = score_table.read(results / "scores.csv")
    text = (results / "tables" / "main.md").read_text()
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:]] == [
        *("zero-shot", "fine-tuned"),
        *("zero-shot", "ported"),
        *("zero-shot", "ported", "half-ported", "re-fine-tuned"),
    ]
    first = table[table["metric"] == "acc,none"].iloc[0]
    assert f"{first['value'] * 100:.1f} ± {first['stderr'] * 100:.1f}" in text
    assert r"\toprule" in (results / "tables" / "main.tex").read_text()
    moved = pandas.read_csv(results / "tables" / "versions.csv")
    assert moved["version"].tolist() == ["first", "second", "update-1", "update-2", "update-3"]
    assert (moved["relative"] > 0).all()
    # The base's patch and the native one, on the version that has both.
    norms = pandas.read_csv(results / "tables" / "norms.csv")
    assert norms[["version", "task"]].to_numpy().tolist() == [
        ["second", "demo_yes_no"],
        ["second", "demo_arithmetic"],
    ]
    costs = pandas.read_csv(results / "tables" / "efficiency.csv").set_index(["task", "arm"])
    assert costs.loc[("demo_yes_no", "porting"), "trainable_parameters"] == 0
    # Both versions against no patch, the second against re-fine-tuning too, in three metrics.
    compared = pandas.read_csv(results / "tables" / "comparisons.csv")
    assert len(compared) == 3 * 3
    values = table.set_index(["applied_to", "trained_on", "method", "metric"])["value"]
    for row in compared.itertuples():
        other = ("none", "none") if row.against == "zero-shot" else (row.applied_to, "direct")
        ported = values[row.applied_to, "base", "direct", row.metric]
        assert row.value == pytest.approx(ported - values[row.applied_to, *other, row.metric])
    assert (compared["n"] == 40).all()
    for figure in ("recovery", "lifetime", "geometry", "loss-slices", "scaling", "losses"):
        for ending in ("svg", "png"):
            assert (results / "figures" / f"{figure}.{ending}").stat().st_size > 1000


def test_tables_follow_a_chain_over_its_updates(results: Path) -> None:
    for number in (2, 3):
        evolved = files.read_json(results / f"models/tiny/update-{number}/manifest.json")
        parent = files.read_json(results / f"models/tiny/update-{number - 1}/manifest.json")
        assert evolved["inputs"]["model"] == parent["content_hash"]
    # Each learns its own part of the corpus.
    whole, *parts = (
        Counter((results / f"corpora/{name}.jsonl").read_text().splitlines())
        for name in ("tales", "tales-1-of-3", "tales-2-of-3", "tales-3-of-3")
    )
    assert sum(parts, Counter()) == whole
    assert sorted(part.total() for part in parts) == [66, 67, 67]

    table = score_table.read(results / "scores.csv")
    table = table[table["method"].isin(["none", "direct"])]
    scored = table.set_index(["applied_to", "trained_on", "task"]).sort_index()
    over = pandas.read_csv(results / "tables/temporal.csv")
    assert over[["arm", "update"]].to_numpy().tolist() == [
        *(["zero-shot", number] for number in range(4)),
        *(["carried", number] for number in range(4)),
    ]
    for row in over.itertuples():
        version = f"update-{row.update}" if row.update else "base"
        patch = "none" if row.arm == "zero-shot" else "base"
        value = scored["value"][version, patch, "demo_yes_no"]
        assert row.value == pytest.approx(value)
    drawn = pandas.read_csv(results / "figures/lifetime.csv")
    assert sorted(set(drawn["update"])) == [0, 1, 2, 3]

    trend = pandas.read_csv(results / "tables/trend.csv")
    assert trend["arm"].tolist() == ["zero-shot", "carried"]
    for arm in trend.itertuples():
        assert (arm.updates, arm.last_update) == (4, 3)
        assert math.isfinite(arm.slope)
        values = over[over["arm"] == arm.arm]["value"]
        if values.nunique() == 1:
            # Equal scores do not say how much they might have differed.
            assert math.isnan(arm.low)
        else:
            assert arm.low <= arm.slope <= arm.high
        assert arm.slope == pytest.approx(numpy.polyfit(range(4), values, 1)[0], abs=1e-9)
    # Four updates are too few for a line to tell when a patch is worn out, and it says so.
    carried = trend.set_index("arm").loc["carried"]
    assert pandas.isna(carried["forecast"])
    assert carried["forecast_refused"]
    assert (
        f"No forecast for demo_yes_no carried: {carried['forecast_refused']}"
        in (results / "tables/trend.md").read_text()
    )


def test_angles_between_patches_and_the_update(results: Path, tmp_path: Path) -> None:
    place = "geometry/base/demo_yes_no/seed1234.json"
    measured = files.read_json(results / "analysis/tiny/second" / place)
    assert measured["version"] == "second"
    assert len(measured["weights"]) == 14
    for row in measured["weights"]:
        assert len(row["update_column_angles"]) == len(row["native_row_angles"]) == 8
        assert 0 < row["update_column_energy"] < 1
        # Both patches have started from the same A, and have hardly moved from it.
        assert row["native_row_similarity"] > 0.9
    outputs = [str(tmp_path / f"table.{ending}") for ending in ("csv", "md", "tex")]
    source = str(results / "analysis/tiny/second" / place)
    settings = json.dumps({"kind": "geometry", "by": "layer"})
    done = run_program("make_table.py", source, "--settings", settings, "--output", *outputs)
    assert done.returncode == 0, done.stderr
    assert pandas.read_csv(outputs[0])["layer"].tolist() == [0, 1]


def test_losses_between_the_patches(results: Path) -> None:
    found = results / "analysis/tiny/second/loss_slices"
    (file,) = found.rglob("*.json")
    measured = files.read_json(file)
    assert measured["task"] == "demo_yes_no"
    assert [point["t"] for point in measured["points"]] == [-0.25, 0.0, 0.5, 1.0, 1.25]
    for point in (*measured["points"], measured["un_patched"]):
        assert 0 < point["loss"] < 20
        assert point["n"] == 30


def test_the_report_has_every_table_and_figure(results: Path) -> None:
    page = (results / "report.html").read_text()
    for kind, ending in (("tables", "md"), ("figures", "svg")):
        names = [path.stem for path in (results / kind).glob(f"*.{ending}")]
        assert names
        for name in names:
            assert f'id="{kind[:-1]}-{name}"' in page
    assert "trained from scratch" in page


def test_snakemake_s_own_report_has_captions(finished: Checkout) -> None:
    finished.complete(*CONFIG, "--report", "snakemake-report.html")
    page = (finished.directory / "snakemake-report.html").read_text()
    for words in ("trains a LoRA patch once", "each with its standard error"):
        assert words in page
    for result in ("tables/main.csv", "figures/recovery.svg"):
        assert result in page


def test_manifests_record_inputs_and_outputs(results: Path) -> None:
    base = files.read_json(results / "models/tiny/base/manifest.json")
    patch_directory = results / "patches/tiny/base/demo_yes_no/seed1234"
    patch = files.read_json(patch_directory / "manifest.json")
    assert patch["inputs"]["model"] == base["content_hash"]
    assert patch["parameters"]["seed"] == 1234
    assert patch["parameters"]["learning_rate"] == 0.001
    tensors = load_file(patch_directory / "adapter_model.safetensors")
    assert patch["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert patch["cost"]["wall_seconds"] > 0
    assert patch["packages"]["torch"].startswith("2.13.0")
    port = files.read_json(
        results / "ports/tiny/base/second/demo_yes_no/half/seed1234/manifest.json"
    )
    assert port["inputs"]["patch"] == patch["content_hash"]
    assert port["parameters"] == {"method": "scaled", "scale": 0.5}
    scored = files.read_json(results / "scores/tiny/second/demo_yes_no.json")
    used = {cell["adapter_content"] for cell in scored["cells"]}
    assert port["content_hash"] in used


def test_training_leaves_no_checkpoints_behind(results: Path) -> None:
    assert [path for path in (results / "checkpoints").rglob("*") if path.is_file()] == []


def test_a_version_contains_its_rendered_recipe(results: Path) -> None:
    recipe = yaml.safe_load((results / "models/tiny/second/axolotl.yaml").read_text())
    assert recipe["base_model"] == "results/models/tiny/first"
    assert recipe["max_steps"] == 3
    evolved = files.read_json(results / "models/tiny/second/manifest.json")
    parent = manifests.content_hash(results / "models/tiny/first")
    assert evolved["inputs"]["model"] == parent


def test_the_merged_checkpoint_is_version_plus_patch(results: Path) -> None:
    merged = results / "merged/tiny/base/second/demo_yes_no/direct/seed1234"
    AutoModelForCausalLM.from_pretrained(merged)
    before = dict(Checkpoint(results / "models/tiny/second").tensors())
    after = dict(Checkpoint(merged).tensors())
    patch = load_file(results / "patches/tiny/base/demo_yes_no/seed1234/adapter_model.safetensors")
    changed = 0
    for name, tensor in after.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        difference = tensor.double() - before[name].double()
        if f"{module}.lora_A.weight" not in patch:
            assert difference.abs().max() == 0
            continue
        a, b = (patch[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
        # alpha 16, rank 8; float32 keeps about seven digits of the sum.
        assert (difference - 2 * b @ a).abs().max() < 1e-6
        changed += 1
    assert changed == 14


def benchmark() -> ModuleType:
    """Load benchmarks/evaluate.py, whose name is also that of a package that lm-eval uses."""
    path = PROJECT / "benchmarks" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("adapter", "cell", "tasks"),
    [
        (None, {"trained_on": "none", "method": "none"}, "demo_yes_no,demo_arithmetic"),
        (
            "results/ports/tiny/base/second/demo_arithmetic/half/seed1234",
            {"trained_on": "base", "method": "half"},
            "demo_arithmetic",
        ),
    ],
    ids=["un-patched", "ported"],
)
def test_scores_equal_those_of_lm_evals_command_line(
    finished: Checkout, tmp_path: Path, adapter: str | None, cell: dict[str, str], tasks: str
) -> None:
    side_by_side = benchmark()
    version = finished.directory / "results/models/tiny/second"
    patch = finished.directory / adapter if adapter else None
    settings = {"batch_size": 32, "few_shot": 0, "limit": 40, "dtype": "auto", "max_length": None}
    _, theirs = side_by_side.lm_eval(tmp_path, version, tasks, patch, DEMO, settings)
    assert sorted(theirs) == sorted(tasks.split(","))
    for task, samples in theirs.items():
        path = finished.directory / f"results/scores/tiny/second/{task}.samples.jsonl"
        own_rows = [row for row in files.read_json_lines(path) if cell.items() <= row.items()]
        assert len(samples) >= 40
        assert side_by_side.differences(own_rows, samples) == []
        # It would see one.
        own_rows[7]["filtered_resps"] = ["something else"]
        assert len(side_by_side.differences(own_rows, samples)) == 1


def score_again(
    study: Checkout, results: Path, *python: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the scoring program with the options of the study for one version and task."""
    patches = "results/patches/tiny/{}/demo_yes_no/seed1234"
    ports = "results/ports/tiny/base/second/demo_yes_no/{}/seed1234"
    command = [
        *(PROJECT / ".venvs/eval/bin/python", *python, "workflow_scripts/score.py"),
        *("--version", "results/models/tiny/second", "--task", "results/tasks/demo_yes_no"),
        *("--lm-eval", "demo_yes_no", "--include", "resources/demo", "--limit", "40"),
        *("--un-patched", "--adapter", f"base/direct/1234={ports.format('direct')}"),
        *(
            f"base/half/1234={ports.format('half')}",
            f"second/direct/1234={patches.format('second')}",
        ),
        *("--code", ProgramCode(study.directory / "workflow_scripts").parameter("score.py")),
        *("--results", results, "--samples", results.with_suffix(".samples.jsonl")),
    ]
    return subprocess.run(
        [str(word) for word in command],
        cwd=study.directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_reusing_all_cells_imports_nothing_heavy(finished: Checkout, tmp_path: Path) -> None:
    of_study = finished.directory / "results/scores/tiny/second/demo_yes_no.json"
    results = tmp_path / "demo_yes_no.json"
    for ending in (".json", ".samples.jsonl"):
        shutil.copy(of_study.with_suffix(ending), results.with_suffix(ending))
    done = score_again(finished, results, "-X", "importtime")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("reusing the ") == 4
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "portllm.scoring.cache" in imported
    heavy = {"torch", "transformers", "peft", "lm_eval", "datasets", "numpy", "pandas"}
    assert not imported & heavy
    before, after = files.read_json(of_study), files.read_json(results)
    assert before.pop("names").keys() > after.pop("names").keys()
    assert after == before


def test_two_processes_give_the_scores_of_one(finished: Checkout, tmp_path: Path) -> None:
    # Each would have a GPU of its own; here they meet on the CPU.
    results = tmp_path / "demo_yes_no.json"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = score_again(finished, results, *launcher, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    # The second process works without a word.
    assert done.stderr.count("scoring the ") == 4
    one = finished.directory / "results/scores/tiny/second/demo_yes_no.json"
    for cell, other in zip(
        *(files.read_json(path)["cells"] for path in (results, one)), strict=True
    ):
        assert cell["metrics"] == other["metrics"]
        assert cell["key"] != other["key"]
    rows, others = (
        list(files.read_json_lines(path.with_suffix(".samples.jsonl"))) for path in (results, one)
    )
    assert len(rows) == len(others) == 160
    for cell, other in zip(rows, others, strict=True):
        for name in ("trained_on", "method", "doc_id", "filter", "doc_hash", "prompt_hash"):
            assert cell[name] == other[name]
        values = [[float(choice[0][0]) for choice in row["resps"]] for row in (cell, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_evolutions_are_equal_for_equal_seeds_only(finished: Checkout, tmp_path: Path) -> None:
    again = copy_state(finished, tmp_path / "again")
    target = again.directory / "results/models/tiny/first"
    weights = target / "model.safetensors"
    before = weights.read_bytes()
    again.complete("results/models/tiny/first", "--force", *CONFIG)
    assert weights.read_bytes() == before
    config = again.read(MINUTE)
    config["evolutions"]["first"]["seed"] = 43
    again.write(MINUTE, config)
    again.complete("results/models/tiny/first", *CONFIG)
    assert weights.read_bytes() != before


def test_an_added_seed_scores_only_its_own_cells(finished: Checkout, tmp_path: Path) -> None:
    more = copy_state(finished, tmp_path / "more")
    config = more.read(MINUTE)
    config["study"] = {"seeds": [1234, 7], "tasks": ["demo_yes_no"]}
    more.write(MINUTE, config)
    target = "results/scores/tiny/base/demo_yes_no.json"
    before = json.loads((more.directory / target).read_text())
    more.complete(target, *CONFIG)
    log = (more.directory / "logs/score/tiny/base/demo_yes_no.log").read_text()
    assert log.count("reusing the ") == 2
    assert log.count("scoring the ") == 1
    after = json.loads((more.directory / target).read_text())
    assert after["cells"][:2] == before["cells"]
    assert [cell["seed"] for cell in after["cells"]] == [None, 1234, 7]


def test_a_truncated_result_is_not_used(finished: Checkout, tmp_path: Path) -> None:
    copy = copy_state(finished, tmp_path / "cut")
    samples = copy.directory / "results/scores/tiny/base/demo_yes_no.samples.jsonl"
    whole = samples.read_text()
    samples.write_text(whole[: len(whole) * 2 // 3])
    target = "results/scores/tiny/base/demo_yes_no.json"
    copy.complete(target, "--force", *CONFIG)
    log = (copy.directory / "logs/score/tiny/base/demo_yes_no.log").read_text()
    assert "reusing the " not in log
    assert samples.read_text() == whole
