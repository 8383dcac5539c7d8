"""A patch that one checkout trained is really scored in another, through a shared cache."""

from pathlib import Path

import pytest
from conftest import Checkout, make_checkout

from portllm.storage import files, manifests

pytestmark = pytest.mark.slow

CONFIG = ("--cache", "--configfile", "tests/studies/minute.yaml")
PATCH = "results/patches/tiny/base/demo_arithmetic/seed1234"
SCORE = "results/scores/tiny/base/demo_arithmetic.json"


def only_arithmetic(checkout: Checkout) -> None:
    study = checkout.read("tests/studies/minute.yaml")
    study["study"] = {"tasks": ["demo_arithmetic"]}
    study["merged"] = []
    checkout.write("tests/studies/minute.yaml", study)


def test_a_shared_patch_is_scored_and_can_be_retrained(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    place = {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}
    first, second = make_checkout(tmp_path / "first"), make_checkout(tmp_path / "second")
    for checkout in (first, second):
        only_arithmetic(checkout)
    first.complete(PATCH, *CONFIG, **place)
    output = second.complete(SCORE, *CONFIG, **place)
    assert "Moving output file" not in output
    cells = files.read_json(second.directory / SCORE)["cells"]
    assert [cell["trained_on"] for cell in cells] == ["none", "base"]
    original = manifests.content_hash(first.directory / PATCH)
    assert cells[1]["adapter_content"] == original
    assert manifests.content_hash(second.directory / PATCH) == original

    # Retrained without the cache, the patch belongs to the checkout; the shared one stays.
    second.complete(PATCH, "--forcerun", "train_patch", "--configfile", CONFIG[-1])
    assert not (second.directory / PATCH / "adapter_model.safetensors").is_symlink()
    assert (first.directory / PATCH / "adapter_model.safetensors").is_file()
