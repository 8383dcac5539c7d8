"""Checkouts that share a cache train everything once; the key covers all that changes a result."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Checkout, make_checkout, use_stand_ins

from portllm.errors import InputError
from portllm.snakemake_hooks import output_cache

STUDY = "tests/studies/minute.yaml"
# One base, two evolutions and a chain; two patches on the base and two on the second evolution.
UPDATES = ("update-1", "update-2", "update-3")
EVOLVED = {f"models/tiny/{version}" for version in ("first", "second", *UPDATES)}
SHARED = {"models/tiny/base", *EVOLVED} | {
    f"patches/tiny/{version}/{task}/seed1234"
    for version in ("base", "second")
    for task in ("demo_yes_no", "demo_arithmetic")
}


def moved(output: str) -> set[str]:
    """Return the outputs that a run moved to the cache, relative to results/."""
    return set(re.findall(r"Moving output file results/(\S+) to cache", output))


def fresh(directory: Path) -> Checkout:
    checkout = make_checkout(directory)
    use_stand_ins(checkout)
    return checkout


# Rules downstream of models and patches, which stand-ins cannot produce.
REST = (
    "score",
    "measure_norms",
    "measure_movement",
    "measure_geometry",
    "measure_loss_slice",
    "make_table",
    "make_figure",
)


def finish(checkout: Checkout, cache: Path, *arguments: str) -> str:
    done = checkout.run(
        *("--cores", "2", "--cache", "--omit-from", *REST, *arguments),
        *("--configfile", STUDY),
        SNAKEMAKE_OUTPUT_CACHE=str(cache),
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the minute-sized study of a first checkout."""
    directory = tmp_path_factory.mktemp("sharing")
    (directory / "cache").mkdir()
    assert moved(finish(fresh(directory / "first"), directory / "cache")) == SHARED
    return directory / "cache"


@pytest.fixture
def second(tmp_path: Path) -> Checkout:
    return fresh(tmp_path / "second")


def test_a_second_checkout_trains_nothing(cache: Path, second: Checkout) -> None:
    output = finish(second, cache)
    assert moved(output) == set()
    for path in SHARED:
        created = list((second.directory / "results" / path).iterdir())
        assert any(entry.resolve().is_relative_to(cache) for entry in created), path


def unlike_scoring(config: dict[str, Any]) -> None:
    config["scoring"] = {"batch_size": 7}
    config["tasks"]["demo_yes_no"]["limit"] = 10


def other_place(config: dict[str, Any]) -> None:
    config["pathvars"] = {"results": "elsewhere/results"}


def less_memory(config: dict[str, Any]) -> None:
    config["resources"] = {"patch": {"mem_mb": 1000, "threads": 2}, "evolve": {"runtime": 9}}


@pytest.mark.parametrize("edit", [unlike_scoring, other_place, less_memory])
def test_settings_that_do_not_change_results_share(
    cache: Path, second: Checkout, edit: Callable[[dict[str, Any]], None]
) -> None:
    config = second.read(STUDY)
    edit(config)
    second.write(STUDY, config)
    assert "to cache" not in finish(second, cache)


def other_seed(config: dict[str, Any]) -> None:
    config["study"] = {"seeds": [5]}


def other_rate(config: dict[str, Any]) -> None:
    config["patch"]["learning_rate"] = 0.5


def other_corpus(config: dict[str, Any]) -> None:
    config["corpora"]["tales"]["sources"][0]["arguments"]["seed"] = 9


def other_base(config: dict[str, Any]) -> None:
    config["models"]["tiny"]["base"]["from_scratch"]["steps"] = 21


def other_order(config: dict[str, Any]) -> None:
    recipes = ["config/axolotl/demo_lora.yaml", "config/axolotl/demo_full.yaml"]
    config["evolutions"]["second"]["recipe"] = recipes


PATCHES = {path for path in SHARED if path.startswith("patches")}
ON_SECOND = {path for path in PATCHES if "second" in path}
CHANGES: list[tuple[Callable[[dict[str, Any]], None], set[str]]] = [
    (other_seed, {path.replace("1234", "5") for path in PATCHES}),
    (other_rate, PATCHES),
    (other_corpus, EVOLVED | ON_SECOND),
    (other_base, SHARED),
    (other_order, {"models/tiny/second"} | ON_SECOND),
]


@pytest.mark.parametrize(("edit", "expected"), CHANGES)
def test_settings_that_change_a_result_do_not_share(
    cache: Path,
    second: Checkout,
    edit: Callable[[dict[str, Any]], None],
    expected: set[str],
) -> None:
    config = second.read(STUDY)
    edit(config)
    second.write(STUDY, config)
    assert moved(finish(second, cache)) == expected


def test_the_order_of_recipes_is_part_of_the_key(cache: Path, second: Checkout) -> None:
    config = second.read(STUDY)
    other_order(config)
    config["evolutions"]["second"]["recipe"].reverse()
    second.write(STUDY, config)
    assert "models/tiny/second" in moved(finish(second, cache))


def test_changed_training_code_shares_nothing(cache: Path, second: Checkout) -> None:
    code = second.directory / "workflow_scripts" / "portllm" / "training" / "patch_training.py"
    code.write_text(code.read_text() + "\nCHANGED = 1\n")
    assert moved(finish(second, cache)) == SHARED


def entry_of(checkout: Checkout, artefact: str) -> Path:
    """The directory in the cache that an artefact's files are in."""
    return (checkout.directory / artefact / "made_by").resolve().parents[1]


def flip_byte(entry: Path) -> None:
    file = entry / "content" / "made_by"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def remove_record(entry: Path) -> None:
    (entry / "entry.json").unlink()


def test_damaged_entries_are_quarantined_and_made_anew(tmp_path: Path) -> None:
    """Damage is found where the entry was stored, where it is linked and in a new checkout."""
    cache = tmp_path / "cache"
    stored, linked, new = (fresh(tmp_path / name) for name in ("stored", "linked", "new"))
    finish(stored, cache)
    finish(linked, cache)
    patch = "results/patches/tiny/base/demo_yes_no/seed1234"
    entry = entry_of(stored, patch)
    original = (entry / "content" / "made_by").read_bytes()
    for number, (checkout, damage) in enumerate(
        ((linked, flip_byte), (stored, flip_byte), (new, remove_record)), start=1
    ):
        damage(entry)
        output = finish(checkout, cache)
        assert f"{entry} is damaged (" in output
        is_noticed = f"{patch} is damaged (" in output
        assert is_noticed == (checkout is not new)
        assert {f"results/{path}" for path in moved(output)} == {patch}
        assert (checkout.directory / patch / "made_by").read_bytes() == original
        notes = list((entry.parent / "quarantine").glob("*.reason.txt"))
        assert len(notes) == number
        assert all(str(entry) in note.read_text() for note in notes)
    # Its links lead to an entry that is gone, until the next run.
    assert moved(finish(stored, cache)) == set()
    assert entry_of(stored, patch) == entry
    assert "is damaged" not in finish(stored, cache)


def test_entries_are_private(cache: Path) -> None:
    paths = [path for path in cache.rglob("*") if path != cache]
    assert len(paths) > len(SHARED)
    assert [path for path in paths if path.lstat().st_mode & 0o077] == []


def test_machines_with_and_without_gpus_share_nothing(tmp_path: Path) -> None:
    places = set()
    for with_devices in (False, True):
        environment = {output_cache.VARIABLE: str(tmp_path)}
        output_cache.prepare(environment, PROJECT / "workflow_scripts", with_devices=with_devices)
        places.add(environment[output_cache.VARIABLE])
    assert len(places) == 2


def test_a_changed_local_model_changes_the_key(tmp_path: Path, cache: Path) -> None:
    """The key of what is trained on a linked model covers its contents, not its path."""
    outputs = []
    for number, content in enumerate((b"one", b"two", b"one")):
        checkout = fresh(tmp_path / str(number))
        model = checkout.directory / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(content)
        config = checkout.read(STUDY)
        config["models"]["tiny"]["base"] = {"path": "model"}
        checkout.write(STUDY, config)
        outputs.append(moved(finish(checkout, cache)))
    # The base is linked, not trained, so it is not in the cache.
    assert outputs == [SHARED - {"models/tiny/base"}, SHARED - {"models/tiny/base"}, set()]


def test_cache_without_a_directory_is_an_error(second: Checkout) -> None:
    done = second.run("--cores", "1", "--cache", "--configfile", STUDY, SNAKEMAKE_OUTPUT_CACHE="")
    assert done.returncode != 0
    assert "--cache needs SNAKEMAKE_OUTPUT_CACHE: found nothing" in done.stdout


def test_a_cache_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {output_cache.VARIABLE: str(tmp_path / "file")}
    with pytest.raises(InputError, match="cannot create"):
        output_cache.prepare(environment, PROJECT / "workflow_scripts")


def test_an_inherited_cache_path_is_not_extended_again(tmp_path: Path) -> None:
    environment = {output_cache.VARIABLE: str(tmp_path)}
    output_cache.prepare(environment, PROJECT / "workflow_scripts")
    once = dict(environment)
    output_cache.prepare(environment, PROJECT / "workflow_scripts")
    assert environment == once != {output_cache.VARIABLE: str(tmp_path)}
