"""A mirror of the hub says where a model is, not what it is."""

import pytest
import tiny
from conftest import Checkout

BASE = "results/models/mine/base"


def fetch(checkout: Checkout, mirror: str, **more: str | None) -> str:
    """Fetch the base of a study from a mirror; return what Snakemake printed."""
    source = {"hub": "acme/model", **{key: value for key, value in more.items() if value}}
    checkout.write(
        "study.yaml",
        {
            "models": {"mine": {"base": source}},
            "tasks": {"demo_yes_no": {"include": "resources/demo"}},
            "hub_mirror": mirror,
        },
    )
    done = checkout.run("--cores", "1", "--configfile", "study.yaml", "--", BASE)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def add_model(checkout: Checkout, mirror: str, seed: int = 0) -> None:
    tiny.save_model(checkout.directory / mirror / "acme" / "model", seed=seed)


@pytest.mark.parametrize("revision", [None, "0123456789"])
def test_moving_a_mirror_fetches_nothing_again(checkout: Checkout, revision: str | None) -> None:
    add_model(checkout, "here")
    fetch(checkout, "here", revision=revision)
    weights = (checkout.directory / BASE / "model.safetensors").read_bytes()
    (checkout.directory / "here").rename(checkout.directory / "there")
    assert "Nothing to be done" in fetch(checkout, "there", revision=revision)
    assert (checkout.directory / BASE / "model.safetensors").read_bytes() == weights


def test_another_model_in_the_mirror_is_fetched(checkout: Checkout) -> None:
    add_model(checkout, "here")
    fetch(checkout, "here")
    add_model(checkout, "there", seed=5)
    fetch(checkout, "there")
    expected = checkout.directory / "there/acme/model/model.safetensors"
    fetched = checkout.directory / BASE / "model.safetensors"
    assert fetched.read_bytes() == expected.read_bytes()


def test_another_subfolder_is_another_model(checkout: Checkout) -> None:
    model = checkout.directory / "here/acme/model"
    for seed, step in enumerate(("step 1", "2/main")):
        tiny.save_model(model / step, seed=seed)
        fetch(checkout, "here", subfolder=step)
        fetched = checkout.directory / BASE / "model.safetensors"
        assert fetched.read_bytes() == (model / step / "model.safetensors").read_bytes()
