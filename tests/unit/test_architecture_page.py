"""The tour of the codebase names files, packages and rules that exist."""

import re

import pytest
from conftest import PROJECT

PAGE = (PROJECT / "docs/architecture.md").read_text()
LIBRARY = PROJECT / "workflow_scripts/portllm"


def rows(heading: str) -> list[list[str]]:
    """Cells of the tables in a section, headers left out."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(heading + "\n"))
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines]


def named(cell: str) -> list[str]:
    """Names in code style."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", rows("Where to look")[1:], ids=lambda row: row[0])
def test_the_place_to_look_exists(row: list[str]) -> None:
    places = [name for name in named(row[1]) if "/" in name or name.endswith(".py")]
    assert places
    for place in places:
        if "NAME" not in place:
            assert (PROJECT / place).exists() or list(LIBRARY.parent.rglob(place)), place


def test_every_package_is_on_the_tour() -> None:
    first = {name for row in rows("Codebase tour") for name in named(row[0])}
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert packages <= first


def test_every_rule_is_in_the_table_of_stages() -> None:
    listed = {name for row in rows("Rules") for name in named(row[0])}
    files = "".join(path.read_text() for path in PROJECT.glob("rules/*.smk"))
    assert set(re.findall(r"^rule (\w+):", files, re.MULTILINE)) == listed


def test_programs_and_modules_of_stages_exist() -> None:
    for _, programs, modules, tests in rows("Rules")[1:]:
        for program in named(programs):
            assert (PROJECT / "workflow_scripts" / program).is_file(), program
        for module in named(modules):
            assert list(LIBRARY.rglob(module.removesuffix("/").split("/")[-1])), module
        for place in named(tests):
            name = place.removesuffix("/").split("/")[-1]
            assert list((PROJECT / "tests").rglob(name)), place
