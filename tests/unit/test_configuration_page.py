"""The configuration reference and the editors' schema are what their generators print."""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT

PAGE = PROJECT / "docs/configuration.md"
EDITOR_SCHEMA = PROJECT / "config/study.schema.json"


@pytest.mark.parametrize(
    ("page", "program"),
    [(PAGE, "generate_configuration.py"), (EDITOR_SCHEMA, "generate_editor_schema.py")],
)
def test_the_committed_file_is_current(page, program) -> None:
    printed = subprocess.run(
        [sys.executable, PROJECT / "docs" / program], capture_output=True, text=True, check=True
    ).stdout
    assert page.read_text() == printed, "run `make docs`"


def test_editors_complete_the_kinds_of_tables_and_figures() -> None:
    properties = json.loads(EDITOR_SCHEMA.read_text())["properties"]
    kinds = properties["tables"]["additionalProperties"]["properties"]["kind"]["enum"]
    assert {"main", "recovery", "geometry"} <= set(kinds)
    figure = properties["figures"]["additionalProperties"]
    assert "lifetime" in figure["properties"]["kind"]["enum"]
    assert figure["additionalProperties"] is False


def test_keys_of_every_depth_are_listed_with_type_and_default() -> None:
    lines = PAGE.read_text().splitlines()
    for expected in (
        "| `study.seeds` | list of integers (≥ 0, ≤ 4294967295) | `[1234]` |",
        "| `models.NAME.base` | [source](#source) | – |",
        "| `evolutions.NAME.corpus` | string | **required** |",
        "| `imported.NAME.cells[].match.path` | string | – |",
        "| `patch.rank` | integer (≥ 1) | `8` |",
        "| `ties` | `density` | `0.2` |",
    ):
        assert [line for line in lines if line.startswith(expected)], expected
