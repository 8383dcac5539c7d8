"""Parse YAML in bounded time and memory.

In nine lines of YAML, aliases of lists of aliases stand for billions of values. PyYAML shares
them, but whatever copies, compares or prints the result does not, and a merge key (`<<`) multiplies
them in PyYAML itself. So the size is checked between parsing and construction.
"""

import re
from typing import Any

import yaml

from portllm.errors import InputError

LARGEST_TEXT = 1_000_000
"""Characters that a file may have, and also after each alias is replaced by its value."""
_PER_NODE = 8
_LONGEST_NUMBER = 1000
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
"""Escapes can stand for characters that no file can be named by, or that cannot be encoded."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse(text: str, place: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parse a YAML document.

    Raises:
        InputError: which starts with `place`, for a text that is not valid YAML or too large.
    """
    if len(text) > LARGEST_TEXT:
        raise InputError(
            f"{place}: found {len(text):,} characters, expected at most {LARGEST_TEXT:,}"
        )
    try:
        parser = loader(text)
        root = parser.get_single_node()
        if root is None:
            return None
        _expanded_size(root, {})
        return parser.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not YAML"
        raise InputError(f"{place}: does not parse as YAML: {_line(mark)}{problem}") from None
    except RecursionError:
        raise InputError(f"{place}: does not parse as YAML: nested too deeply") from None
    except _UnusableError as error:
        raise InputError(f"{place}: {error}") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors raise these for a date such as 2026-99-99, or `!!bool maybe`.
        problem = f"a value of a wrong form ({error})"
        raise InputError(f"{place}: does not parse as YAML: {problem}") from None


class _UnusableError(Exception):
    """Why valid YAML cannot be used, and its line."""

    def __init__(self, node: yaml.Node, problem: str) -> None:
        super().__init__(f"{_line(node.start_mark)}found {problem}")


def _line(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}: " if mark else ""


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of characters of a node whose aliases are replaced by their values.

    Args:
        node: the node.
        sizes: known sizes by the node's identity; -1 while the node's parts are being counted.
    """
    known = sizes.get(id(node))
    if known is not None:
        if known < 0:
            raise _UnusableError(node, "an alias to a value that contains it")
        return known
    sizes[id(node)] = -1
    size = _PER_NODE
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _UnusableError(node, f"a number of {len(node.value)} digits")
        if _NOT_TEXT.search(node.value):
            raise _UnusableError(node, f"{node.value[:60]!r}, expected text")
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(item, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_expanded_size(part, sizes) for pair in node.value for part in pair)
    if size > LARGEST_TEXT:
        problem = f"a value of over {LARGEST_TEXT:,} characters, with aliases replaced by values"
        raise _UnusableError(node, problem)
    sizes[id(node)] = size
    return size
