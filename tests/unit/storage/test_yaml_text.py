"""Parsing YAML in bounded time and memory."""

import pytest

from portllm.errors import InputError
from portllm.storage import yaml_text


def multiplied(value: str, use: str) -> str:
    """Ten keys, each of which uses the one before nine times."""
    uses = (use.format(", ".join(9 * [f"*a{index - 1}"])) for index in range(1, 10))
    return f"a0: &a0 {value}\n" + "".join(
        f"a{index}: &a{index} {text}\n" for index, text in enumerate(uses, start=1)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (multiplied("[x]", "[{}]"), "line 6: found a value of over 1,000,000 characters"),
        # PyYAML itself multiplies these.
        (multiplied("{x: 1}", "{{<<: [{}]}}"), "line 6: found a value of over 1,000,000 charact"),
        (multiplied(100_000 * "x", "[{}]"), "found a value of over 1,000,000 characters"),
        ("a: &a\n- [*a]", "line 1: found an alias to a value that contains it"),
        (2_000_000 * " ", "found 2,000,000 characters, expected at most 1,000,000"),
        (5000 * "[", "nested too deeply"),
        (f"a: 1\nb: 0x{5000 * 'f'}", "line 2: found a number of 5002 digits"),
        (f"a: {900 * '1:'}1.5", "line 1: found a number of 1803 digits"),
        ("a: 2026-99-99", "a value of a wrong form (month must be in 1..12)"),
        ("a: !!bool maybe", "a value of a wrong form"),
        ("a: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ('a: "\\ud800"', "line 1: found '\\ud800', expected text"),
        ('a: "x\\0"', "line 1: found 'x\\x00', expected text"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
    ],
)
def test_unusable_yaml_is_an_error_of_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        yaml_text.parse(text, "study.yaml")
    assert str(error.value).startswith("study.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_ordinary_aliases_and_merge_keys_are_kept() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n"
    a = {"x": 1, "y": 2}
    assert yaml_text.parse(text, "study.yaml") == {"a": a, "b": {"x": 1, "y": 3}, "c": [a, a]}
    assert yaml_text.parse("# nothing\n", "study.yaml") is None
