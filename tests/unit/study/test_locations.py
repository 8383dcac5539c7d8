"""Paths in a study: in the working directory, else among the workflow's own files."""

import copy
from pathlib import Path
from typing import Any

import pytest

from portllm.errors import InputError
from portllm.reporting import registry
from portllm.study import locations, validation
from portllm.study.schema import schema_file
from portllm.study.yaml_files import KeyOrigins

SHIPPED = Path("workflow")
STUDY: dict[str, Any] = {
    "hub_mirror": "{}hub",
    "models": {
        "m": {
            "base": {"path": "{}base"},
            "releases": {"r": {"path": "{}release"}, "h": {"hub": "owner/name"}},
            "patches": {"t": {"path": "{}patch"}},
        }
    },
    "corpora": {
        "c": {
            "sources": [
                {"files": ["{}rows.jsonl", "{}more.jsonl"]},
                {"generator": "{}generate.py:texts", "arguments": {"path": "kept"}},
            ]
        }
    },
    "evolutions": {
        "e": {"corpus": "c", "recipe": "{}recipe.yaml"},
        "f": {"corpus": "c", "recipe": ["{}recipe.yaml", "{}other.yaml"]},
    },
    "tasks": {"t": {"include": "{}tasks"}, "u": {}},
    "imported": {"i": {"directory": "{}results", "files": ["*.json"]}},
    "tables": {"main": {"kind": "main", "published": "{}published.csv"}},
}


def with_prefix(value: Any, prefix: str) -> Any:
    """Return a study with `{}` replaced in every string."""
    if isinstance(value, dict):
        return {key: with_prefix(item, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [with_prefix(item, prefix) for item in value]
    return value.replace("{}", prefix)


def names(value: Any) -> set[str]:
    """Return the paths in STUDY."""
    if isinstance(value, dict):
        return set().union(*map(names, value.values()))
    if isinstance(value, list):
        return set().union(*map(names, value))
    return {value.removeprefix("{}").partition(":")[0]} if value.startswith("{}") else set()


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SHIPPED.mkdir()


def resolved(study: dict[str, Any], workflow_directory: Path = SHIPPED) -> dict[str, Any]:
    study = copy.deepcopy(study)
    schema = validation.full_schema(schema_file(), registry.load())
    locations.resolve_paths(study, schema, workflow_directory, KeyOrigins([]))
    return study


def test_every_path_is_found_among_the_workflows_files() -> None:
    for name in names(STUDY):
        (SHIPPED / name).touch()
    assert resolved(with_prefix(STUDY, "")) == with_prefix(STUDY, "workflow/")


def test_the_working_directory_comes_first() -> None:
    for name in names(STUDY):
        (SHIPPED / name).touch()
        Path(name).touch()
    assert resolved(with_prefix(STUDY, "")) == with_prefix(STUDY, "")


def test_absolute_paths_stay(tmp_path: Path) -> None:
    for name in names(STUDY):
        Path(name).touch()
    study = with_prefix(STUDY, f"{tmp_path}/")
    assert resolved(study) == study


def test_in_the_checkout_nothing_changes() -> None:
    assert resolved(with_prefix(STUDY, ""), Path()) == with_prefix(STUDY, "")


def test_no_mirror_is_no_path() -> None:
    assert resolved({"hub_mirror": None}) == {"hub_mirror": None}


def test_a_path_in_neither_place_is_refused(tmp_path: Path) -> None:
    study = {"tasks": {"t": {"include": "missing"}}}
    with pytest.raises(InputError) as caught:
        resolved(study)
    assert str(caught.value) == (
        "configuration: tasks.t.include: missing exists neither in the working directory "
        f"({tmp_path}) nor in the workflow's directory ({tmp_path / 'workflow'})"
    )
