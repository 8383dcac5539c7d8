"""Chains of updates: one entry in a study becomes a series of evolutions."""

import copy
from typing import Any

import pytest

from portllm.data import corpora
from portllm.errors import InputError
from portllm.study import chains, matrix

CONFIG: dict[str, Any] = {
    "study": {"evolutions": ["month", "side"], "seeds": [1]},
    "models": {
        "m": {"base": {}, "releases": {}, "patches": {}, "evolutions": ["month"]},
        "other": {"base": {}, "releases": {}, "patches": {}},
    },
    "corpora": {"news": {"sources": [{"generator": "file.py:news"}], "limit": 7}},
    "evolutions": {
        "month": {
            "from": "base",
            "updates": 3,
            "corpus": "news",
            "recipe": "r.yaml",
            "tasks": ["t"],
        },
        "side": {"from": "month", "updates": None, "corpus": "news", "recipe": "r.yaml"},
    },
    "tasks": {"t": {}, "u": {}},
    "arms": {
        "ported": {"trained_on": "base", "applied_to": "month", "method": "direct"},
        "bare": {"trained_on": "none", "applied_to": ["base", "side", "month"]},
    },
    "tables": {"lifetime": {"kind": "temporal", "versions": ["base", "month"]}},
    "figures": {"one": {"kind": "lifetime", "versions": ["month-2"]}},
}
UPDATES = ["month-1", "month-2", "month-3"]


def place(*key: str) -> str:
    return "study.yaml: " + ".".join(key)


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(CONFIG)


def test_a_chain_becomes_its_updates(config: dict[str, Any]) -> None:
    chains.expand(config, place)
    assert list(config["evolutions"]) == [*UPDATES, "side"]
    parents = {name: value["from"] for name, value in config["evolutions"].items()}
    assert parents == {"month-1": "base", "month-2": "month-1", "month-3": "month-2"} | {
        "side": "month-3"
    }
    assert [config["evolutions"][name]["corpus"] for name in UPDATES] == [
        "news-1-of-3",
        "news-2-of-3",
        "news-3-of-3",
    ]
    assert config["corpora"]["news-2-of-3"] == {
        **CONFIG["corpora"]["news"],
        "part": {"number": 2, "of": 3},
    }


def test_releases_that_are_adapters_are_numbered(config: dict[str, Any]) -> None:
    releases = {
        # Before its parent, and after a whole chain.
        "second": {"parent": "first", "adapter": {"hub": "owner/second"}},
        "first": {"parent": "month", "adapter": {"hub": "owner/first"}},
        "checkpoint": {"hub": "owner/other"},
        "after": {"parent": "checkpoint", "adapter": {"hub": "owner/after"}},
    }
    config["models"]["m"]["releases"] = releases
    config["imported"] = {}
    config["arms"]["ported"]["applied_to"] = "later"
    chains.expand(config, place)
    numbers = {"base": 0, "month-1": 1, "month-2": 2, "month-3": 3, "first": 4, "second": 5}
    assert matrix.updates(config, "m") == numbers
    applied = [cell.applied_to for cell in matrix.arm_cells(config, "ported", "m", "t")]
    assert applied == [*releases, *UPDATES]


def test_a_chain_name_selects_all_its_updates(config: dict[str, Any]) -> None:
    chains.expand(config, place)
    assert config["study"]["evolutions"] == [*UPDATES, "side"]
    assert config["models"]["m"]["evolutions"] == UPDATES
    assert config["arms"]["ported"]["applied_to"] == UPDATES
    assert config["arms"]["bare"]["applied_to"] == ["base", "side", *UPDATES]
    assert config["tables"]["lifetime"]["versions"] == ["base", *UPDATES]
    assert config["figures"]["one"]["versions"] == ["month-2"]


def test_an_evolution_is_scored_on_its_own_tasks_only(config: dict[str, Any]) -> None:
    chains.expand(config, place)
    scored = {task: [cell.applied_to for cell in _bare(config, task)] for task in ("t", "u")}
    assert scored == {"t": ["base", *UPDATES, "side"], "u": ["base", "side"]}


def _bare(config: dict[str, Any], task: str) -> list[matrix.Cell]:
    return list(matrix.arm_cells(config, "bare", "other", task))


@pytest.mark.parametrize("kind", ["evolutions", "corpora"])
def test_a_duplicate_name_is_an_error(config: dict[str, Any], kind: str) -> None:
    taken = {"evolutions": "month-2", "corpora": "news-2-of-3"}[kind]
    config[kind][taken] = copy.deepcopy(next(iter(config[kind].values())))
    message = rf"^study\.yaml: {kind}\.{taken}: this name is taken by .* '(month|news)'$"
    with pytest.raises(InputError, match=message):
        chains.expand(config, place)


def test_parts_partition_a_corpus(tmp_path: Any) -> None:
    (tmp_path / "text.txt").write_text("\n".join(map(str, range(11))))
    source = {"files": [str(tmp_path / "text.txt")], "limit": 10}
    parts = [
        [
            row["text"]
            for row in corpora.rows_of_corpus(
                {"sources": [source], "part": {"number": number, "of": 3}}
            )
        ]
        for number in (1, 2, 3)
    ]
    assert parts == [["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"]]
