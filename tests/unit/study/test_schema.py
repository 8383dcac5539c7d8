"""The schema describes every key of a study."""

from collections.abc import Iterator
from typing import Any

from conftest import PROJECT
from exhibit_making import KINDS

from portllm.study import validation
from portllm.transplant import methods

SCHEMA = validation.full_schema(PROJECT / "config" / "schema.yaml", KINDS)


def keys(node: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key of a part of the schema, with its definition."""
    for name, part in node.get("properties", {}).items():
        yield f"{place}.{name}", part
        yield from keys(part, f"{place}.{name}")
    for others in (node.get("additionalProperties"), node.get("items")):
        if isinstance(others, dict):
            yield from keys(others, f"{place}.*")


def test_every_key_has_a_description() -> None:
    found = list(keys(SCHEMA, ""))
    for name, part in SCHEMA["$defs"].items():
        found += keys(part, name)
    assert len(found) > 150
    assert [place for place, part in found if not part.get("description")] == []


def test_every_method_parameter_is_in_the_schema_with_its_default() -> None:
    explained = SCHEMA["properties"]["methods"]["additionalProperties"]["properties"]
    used = set()
    for kind in methods.known():
        assert f"`{kind}`" in explained["kind"]["description"]
        for name, parameter in methods.get(kind).parameters.items():
            used.add(name)
            assert f"`{kind}`" in explained[name]["description"]
            assert f"({parameter.default})" in explained[name]["description"]
    assert explained.keys() == {"kind", *used}
