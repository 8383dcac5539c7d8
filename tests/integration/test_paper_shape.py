"""The paper's recipes and tables on three architectures, really run with tiny models."""

from pathlib import Path

import pandas
import pytest
from conftest import Checkout, make_checkout

from portllm.comparison import score_table
from portllm.storage import files

pytestmark = pytest.mark.slow

STUDY = "tests/studies/paper_shape.yaml"
MODELS = ("mistral-7b", "llama-3.1-8b", "gemma-2-9b")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Results of the finished study, with one of its seven tasks."""
    checkout = make_checkout(tmp_path_factory.mktemp("paper") / "checkout")
    checkout.write("one_task.yaml", {"study": {"tasks": ["gsm8k"]}})
    checkout.complete("--configfile", STUDY, "one_task.yaml")
    return checkout


@pytest.fixture(scope="module")
def results(finished: Checkout) -> Path:
    return finished.directory / "results" / "paper_shape"


@pytest.mark.parametrize("model", MODELS)
def test_every_architecture_goes_through_every_stage(results: Path, model: str) -> None:
    table = score_table.read(results / "scores.csv")
    cells = table[(table["model"] == model) & (table["applied_to"] == "openorca")]
    assert set(cells["trained_on"]) == {"none", "base", "openorca"}
    assert (cells["n"] == 40).all()
    evolved = files.read_json(results / "models" / model / "openorca" / "manifest.json")
    assert evolved["parameters"]["kind"] == "lora"
    moved = pandas.read_csv(results / "tables" / "versions.csv").set_index(["model", "version"])
    assert moved.loc[(model, "openorca"), "relative"] > 0


def test_a_full_weight_evolution_has_no_adapter(results: Path) -> None:
    evolved = files.read_json(results / "models/mistral-7b/openorca-full/manifest.json")
    assert evolved["parameters"]["kind"] == "full"


def test_every_table_of_the_paper_is_built(results: Path) -> None:
    rows = {path.stem: len(pandas.read_csv(path)) for path in results.glob("tables/*.csv")}
    # Two metrics; the base has two arms, a later version three.
    assert rows == {
        "norms": 4,
        "main": 2 * (2 + 4 * 3),
        "continual": 2 * (2 + 2 * 3),
        "architectures": 2 * 3 * (2 + 3),
        "full-against-lora": 2 * 2 * 3,
        "efficiency": 3 * 2,
        "recovery": 2 * 8,
        "versions": 8,
    }
    for name in rows:
        assert r"\toprule" in (results / "tables" / f"{name}.tex").read_text()
        assert (results / "tables" / f"{name}.md").read_text().count("|") > 10


def test_porting_trains_nothing(results: Path) -> None:
    table = pandas.read_csv(results / "tables" / "efficiency.csv").set_index(["model", "arm"])
    for model in MODELS:
        assert table.loc[(model, "porting"), "trainable_parameters"] == 0
        assert table.loc[(model, "re-fine-tuning"), "trainable_parameters"] > 1000
    assert (table.xs("porting", level="arm")["hours"] > 0).all()


def test_the_residual_is_measured_against_the_patch(results: Path) -> None:
    table = pandas.read_csv(results / "tables" / "norms.csv")
    assert (table["relative_residual"] > 0).all()
    ratio = table["residual_norm"] / table["patch_norm"]
    assert ratio.tolist() == pytest.approx(table["relative_residual"].tolist())
