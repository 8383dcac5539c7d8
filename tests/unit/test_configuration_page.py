"""The configuration reference is what its generator prints, and names every key."""

import subprocess
import sys

from conftest import PROJECT

PAGE = PROJECT / "docs/configuration.md"


def test_the_committed_page_is_current() -> None:
    program = PROJECT / "docs/generate_configuration.py"
    printed = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=True
    ).stdout
    assert PAGE.read_text() == printed, "run `make docs`"


def test_keys_of_every_depth_are_listed_with_type_and_default() -> None:
    lines = PAGE.read_text().splitlines()
    for expected in (
        "| `study.seeds` | list of integers (≥ 0) | `[1234]` |",
        "| `models.NAME.base` | [source](#source) | – |",
        "| `evolutions.NAME.corpus` | string | **required** |",
        "| `imported.NAME.cells[].match.path` | string | – |",
        "| `patch.rank` | integer (≥ 1) | `8` |",
        "| `ties` | `density` | `0.2` |",
    ):
        assert [line for line in lines if line.startswith(expected)], expected
