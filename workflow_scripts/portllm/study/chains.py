"""Expand chains of updates: one entry of a study becomes several evolutions.

An evolution with `updates: k` becomes k evolutions, NAME-1 to NAME-k. Each continues the previous
one on its own part of the corpus. Elsewhere in the study, the name of the chain selects all its
updates, or the last one where a single version is expected (`from` of another evolution, `parent`
of a release).
"""

from collections.abc import Callable
from typing import Any

from portllm.errors import InputError, nearest

Config = dict[str, Any]
Place = Callable[..., str]


def update_name(chain: str, number: int) -> str:
    """Return the name of a chain's update, counted from one."""
    return f"{chain}-{number}"


def part_name(corpus: str, number: int, count: int) -> str:
    """Return the name of a part of a corpus, counted from one."""
    return f"{corpus}-{number}-of-{count}"


def _updates(name: str, definition: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    shared = {key: value for key, value in definition.items() if key != "updates"}
    return {
        update_name(name, number): {
            **shared,
            "from": definition["from"] if number == 1 else update_name(name, number - 1),
            "corpus": part_name(definition["corpus"], number, count),
        }
        for number in range(1, count + 1)
    }


def _all_updates(names: list[str], chains: dict[str, list[str]]) -> list[str]:
    return [update for name in names for update in chains.get(name, [name])]


def _replace(owner: dict[str, Any], key: str, chains: dict[str, list[str]]) -> None:
    selector = owner.get(key)
    if isinstance(selector, list):
        owner[key] = _all_updates(selector, chains)
    elif selector in chains:
        owner[key] = chains[selector]


def expand(config: Config, place: Place) -> None:
    """Replace every chain of a configuration by its updates, in place.

    Args:
        config: a configuration with its defaults filled in.
        place: returns file and path of a key, for error messages.

    Raises:
        InputError: the corpus does not exist, or the name of an update or part is already used.
    """
    counts = {
        name: definition["updates"]
        for name, definition in config["evolutions"].items()
        if definition.get("updates") is not None
    }
    chains = {
        name: [update_name(name, number) for number in range(1, count + 1)]
        for name, count in counts.items()
    }
    evolutions: dict[str, dict[str, Any]] = {}
    for name, definition in config["evolutions"].items():
        if name not in chains:
            evolutions[name] = definition
            continue
        for update, of_update in _updates(name, definition, counts[name]).items():
            if update in config["evolutions"]:
                where = place("evolutions", update)
                raise InputError(f"{where}: this name is taken by an update of the chain {name!r}")
            evolutions[update] = of_update
        _add_parts(config, name, definition["corpus"], counts[name], place)
    for definition in evolutions.values():
        if definition["from"] in chains:
            definition["from"] = chains[definition["from"]][-1]
    config["evolutions"] = evolutions
    _replace(config["study"], "evolutions", chains)
    for model in config["models"].values():
        _replace(model, "evolutions", chains)
        for release in model["releases"].values():
            if release.get("parent") in chains:
                release["parent"] = chains[release["parent"]][-1]
    for kind in ("tables", "figures"):
        for settings in config[kind].values():
            _replace(settings, "versions", chains)
    for arm in config["arms"].values():
        _replace(arm, "applied_to", chains)


def _add_parts(config: Config, chain: str, corpus: str, count: int, place: Place) -> None:
    known = config["corpora"]
    if corpus not in known:
        where = place("evolutions", chain, "corpus")
        raise InputError(f"{where}: no corpus named {corpus!r}; {nearest(corpus, known)}")
    for number in range(1, count + 1):
        name = part_name(corpus, number, count)
        part = {**known[corpus], "part": {"number": number, "of": count}}
        if known.setdefault(name, part) != part:
            where = place("corpora", name)
            raise InputError(f"{where}: this name is taken by a part of the corpus {corpus!r}")
