"""Releases that are published as adapters: each is merged into its parent once."""

from pathlib import Path
from typing import Any

import tiny
from conftest import Checkout
from safetensors.torch import load_file

from portllm.storage import files
from portllm.transplant import merging
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint

MODELS = Path("results/models/mine")


def write_study(checkout: Checkout) -> dict[str, Any]:
    """Write a study with a chain of two updates, one from a subfolder; return it."""
    base = tiny.save_model(checkout.directory / "base")
    tiny.save_adapter(checkout.directory / "hub/acme/updates/t1", base, seed=1)
    tiny.save_adapter(checkout.directory / "second", base, **tiny.UNLIKE)
    study = {
        "models": {
            "mine": {
                "base": {"path": "base"},
                "releases": {
                    "v3": {"parent": "v2", "adapter": {"path": "second"}},
                    "v2": {
                        "parent": "base",
                        "adapter": {"hub": "acme/updates", "revision": "1", "subfolder": "t1"},
                    },
                },
            },
            # The same name is a checkpoint here.
            "other": {"base": {"path": "base"}, "releases": {"v2": {"path": "base"}}},
        },
        "hub_mirror": "hub",
        "tasks": {"demo_yes_no": {"include": "resources/demo"}},
    }
    checkout.write("study.yaml", study)
    return study


def merged(parent: Path, adapter: Path, directory: Path) -> Path:
    directory.mkdir()
    merging.merge(Checkpoint(parent), adapters.load(adapter), directory)
    return directory


def test_a_chain_of_updates_is_merged(checkout: Checkout, tmp_path: Path) -> None:
    study = write_study(checkout)
    directory = checkout.directory
    options = ("--configfile", "study.yaml", "--")
    checkout.complete(*options, str(MODELS / "v3"), "results/models/other/v2")
    v2 = merged(directory / "base", directory / "hub/acme/updates/t1", tmp_path / "v2")
    v3 = merged(v2, directory / "second", tmp_path / "v3")
    for version, expected in (("v2", v2), ("v3", v3)):
        made = directory / MODELS / version / "model.safetensors"
        assert made.read_bytes() == (expected / "model.safetensors").read_bytes()
        assert not made.is_symlink()
    weights, before = (load_file(path / "model.safetensors") for path in (v3, directory / "base"))
    assert any((weights[name] != before[name]).any() for name in before)
    update = files.read_json(directory / "results/updates/mine/v2/manifest.json")
    assert update["parameters"]["subfolder"] == "t1"
    assert "Nothing to be done" in checkout.complete(*options, str(MODELS / "v3"))

    # Another update of v2 concerns v2 and what is merged into it, whose fit is checked again.
    study["models"]["mine"]["releases"]["v2"]["adapter"]["revision"] = "2"
    checkout.write("study.yaml", study)
    assert checkout.counts(*options, str(MODELS / "v3"), "results/models/other/v2") == {
        "fetch_update": 2,
        "merge_release": 2,
    }


def test_updates_are_versions_of_the_study(checkout: Checkout) -> None:
    write_study(checkout)
    counts = checkout.counts("--configfile", "study.yaml")
    assert counts["fetch_model"] == 3
    assert (counts["fetch_update"], counts["merge_release"]) == (2, 2)
    # A patch on each of five versions, three of them ports of the base's.
    assert (counts["train_patch"], counts["transplant"], counts["score"]) == (5, 3, 5)
    plan = checkout.complete("--configfile", "study.yaml", "--", "plan")
    # The first table counts jobs and disk.
    row = next(line.split() for line in plan.splitlines() if line.startswith("merge_release "))
    assert row[1:4] == ["2", "0", "2"]
    assert "kB" in row
    assert "?" not in row


def test_an_update_that_does_not_fit_is_an_error(checkout: Checkout) -> None:
    write_study(checkout)
    tiny.save_model(checkout.directory / "base", intermediate_size=48)
    done = checkout.run("--dry-run", "--configfile", "study.yaml")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("error: "))
    assert "models.mine.releases.v3.adapter.path: second does not fit base: it changes" in line
