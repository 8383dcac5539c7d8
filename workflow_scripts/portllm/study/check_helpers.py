"""Checks of single values of a study, which other checks share."""

from collections.abc import Iterable, Mapping
from typing import Any

from portllm.errors import InputError, nearest


def check_known(name: str, options: Iterable[str], place: str, kind: str) -> None:
    """Raise InputError unless `name` is among the options; `kind` is the noun for them."""
    known = list(options)
    if name not in known:
        raise InputError(f"{place}: no {kind} named {name!r}; {nearest(name, known)}")


def exactly_one(definition: dict[str, Any], options: tuple[str, ...], place: str) -> str:
    """Return the only option that a definition has.

    Raises:
        InputError: the definition has several of them, or none.
    """
    present = [option for option in options if option in definition]
    if len(present) != 1:
        listed = " and ".join(present) or "none of them"
        raise InputError(f"{place}: expected exactly one of {', '.join(options)}; found {listed}")
    return present[0]


def check_no_cycle(parents: Mapping[str, str], places: Mapping[str, str], *, kind: str) -> None:
    """Raise InputError if a chain of parents returns to its start.

    Args:
        parents: the parent of each name. Parents that are no names end a chain.
        places: where the study says so.
        kind: the noun for the names, in plural.
    """
    for name in parents:
        path = [name]
        while (parent := parents[path[-1]]) in parents:
            if parent in path:
                cycle = " → ".join([*path[path.index(parent) :], parent])
                raise InputError(f"{places[parent]}: {kind} form a cycle: {cycle}")
            path.append(parent)
