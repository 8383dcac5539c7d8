"""Kinds of tables and figures: their schema, captions, inputs and checks in a study."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from exhibit_making import KINDS

from portllm.errors import InputError
from portllm.study import config as configuration
from portllm.study import validation
from portllm.study.exhibits import Exhibit, Registry, StudyExhibits, register

STUDY: dict[str, Any] = {
    "allow_custom_code": True,
    "models": {"m": {"base": {"hub": "o/m"}, "releases": {"v2": {"hub": "o/m2"}}}},
    "tasks": {"t": {"include": "tasks"}},
}


def load(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """A study of one model, release and task, with its defaults."""
    (tmp_path / "tasks").mkdir(exist_ok=True)
    (tmp_path / "tasks" / "t.yaml").write_text("task: t\ntraining_split: train\n")
    tasks = {"t": {"include": str(tmp_path / "tasks")}}
    schema = PROJECT / "config" / "schema.yaml"
    return configuration.load({**STUDY, "tasks": tasks, **sections}, schema=schema, exhibits=KINDS)


def test_the_schema_names_every_kind_and_its_keys() -> None:
    schema = validation.full_schema(PROJECT / "config" / "schema.yaml", KINDS)
    tables = schema["properties"]["tables"]
    properties = tables["additionalProperties"]["properties"]
    assert set(properties["kind"]["enum"]) == set(KINDS.of_group("tables"))
    assert properties["by"]["enum"] == ["version", "module", "layer"]
    assert properties["by"]["description"].endswith("Only for geometry.")
    assert tables["default"]["norms"] == {"kind": "norms"}
    assert "trend" not in tables["default"]
    assert schema["properties"]["figures"]["default"].keys() == {"recovery", "losses"}


def test_declarations_import_no_library_of_tables_and_figures() -> None:
    code = (
        "import sys; from portllm.reporting import registry; print(len(registry.load())); "
        "print(sorted({'pandas', 'numpy', 'matplotlib', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT / "workflow_scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(len(KINDS)), "[]"]


def test_a_caption_states_the_study_s_level_unless_the_study_has_its_own(tmp_path: Path) -> None:
    tables = {"main": {"kind": "main"}, "mine": {"kind": "main", "caption": "All {level} of it."}}
    study = load(tmp_path, tables=tables, statistics={"level": 0.9})
    assert "90 % intervals" in study["tables"]["main"]["caption"]
    assert study["tables"]["mine"]["caption"] == "All {level} of it."
    assert "{" not in "".join(each["caption"] for each in load(tmp_path)["tables"].values())
    # A caption is not part of what a program makes.
    assert "caption" not in StudyExhibits(KINDS, "tables", study).program_settings("mine")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    expected = r"tables\.main\.by: unknown key for kind 'main'; only for geometry"
    with pytest.raises(InputError, match=expected):
        load(tmp_path, tables={"main": {"kind": "main", "by": "layer"}})


def test_a_file_that_a_key_names_exists_and_is_an_input(tmp_path: Path) -> None:
    published = tmp_path / "published.csv"
    tables = {"main": {"kind": "main", "published": str(published)}}
    expected = r"tables\.main\.published: no such file"
    with pytest.raises(InputError, match=expected):
        load(tmp_path, tables=tables)
    published.touch()
    study = load(tmp_path, tables=tables)
    assert StudyExhibits(KINDS, "tables", study).own_files("main") == [str(published)]


def test_sources_follow_the_selection(tmp_path: Path) -> None:
    study = load(tmp_path, tables={name: {"kind": name} for name in KINDS.of_group("tables")})
    tables = StudyExhibits(KINDS, "tables", study)
    results = [f"<results>/scores/m/{version}/t.json" for version in ("base", "v2")]
    assert tables.sources("main") == ["<results>/scores.csv", *results]
    assert tables.item_files("recovery") == ["<results>/scores/m/v2/t.samples.jsonl"]
    assert tables.sources("comparisons") == results[1:]
    assert tables.sources("temporal") == ["<results>/scores.csv"]
    assert tables.sources("versions") == ["<results>/analysis/m/v2/movement.json"]
    measured = "<results>/analysis/m/v2/{}/base/t/seed1234.json"
    assert tables.sources("norms") == [measured.format("norms")]
    assert tables.sources("geometry") == [measured.format("geometry")]
    assert tables.sources("efficiency") == [
        "<results>/patches/m/v2/t/seed1234",
        "<results>/ports/m/base/v2/t/direct/seed1234",
    ]
    # One seed has no spread.
    assert tables.with_rows() == [name for name in study["tables"] if name != "seeds"]


def test_a_key_means_the_same_in_every_kind() -> None:
    by_letter = {"keys": {"by": {"description": "A letter.", "type": "string"}}}
    other = type("Other", (type(KINDS["tables", "seeds"]),), {"kind": "other", **by_letter})()
    schema = {
        "properties": {
            group: {"additionalProperties": {"properties": {"kind": {"description": ""}}}}
            for group in ("tables", "figures")
        }
    }
    with pytest.raises(ValueError, match=r"'by' of kind '(other|geometry)' has another schema"):
        Registry([*KINDS.values(), other]).complete_schema(schema)


def test_a_kind_has_one_class() -> None:
    class AlsoNorms(Exhibit):
        group = "tables"
        kind = "norms"

        def sources(self, config: Any, settings: Any) -> list[str]:
            return []

        def make(self, sources: list[Path], settings: Any) -> None:
            return None

    with pytest.raises(ValueError, match="two classes are of kind 'norms'"):
        register(AlsoNorms)
