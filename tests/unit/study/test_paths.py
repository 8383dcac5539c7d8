"""Paths of a study's files, and the settings that its stages get."""

from pathlib import Path
from typing import Any

import pytest

from portllm.study import paths, stage_settings
from portllm.study.matrix import Cell, Patch

BARE = Cell("m", "v2", "t")
NATIVE = Cell("m", "v2", "t", "v2", "direct", 1)
PORTED = Cell("m", "v2", "t", "base", "half", 1)
CONFIG: dict[str, Any] = {
    "study": {"seeds": [7]},
    "hub_mirror": None,
    "models": {
        "m": {
            "base": {"hub": "o/m"},
            "releases": {},
            "patches": {"t": {"path": "mine", "trained_on": "base"}},
        }
    },
    "evolutions": {
        "v1": {"from": "base", "corpus": "c", "preprocess": True},
        "v2": {"from": "v1", "corpus": "c", "preprocess": False},
    },
    "corpora": {
        "c": {
            "sources": [
                {"generator": "tales.py:write"},
                {"files": ["a.txt", "b.txt"]},
                {"hub": "o/d"},
            ]
        }
    },
    "tasks": {"t": {}},
    "imported": {},
    "arms": {
        "bare": {"trained_on": "none", "applied_to": "all", "method": "direct"},
        "ported": {"trained_on": "base", "applied_to": "later", "method": "direct"},
    },
}


def test_a_cell_applies_its_patch_or_a_port_of_it() -> None:
    assert paths.adapter_path(NATIVE) == "<results>/patches/m/v2/t/seed1"
    assert paths.adapter_path(PORTED) == "<results>/ports/m/base/v2/t/half/seed1"
    assert paths.merged_path(PORTED) == "<results>/merged/m/base/v2/t/half/seed1"
    assert paths.adapter_paths([BARE, PORTED]) == [paths.adapter_path(PORTED)]
    with pytest.raises(ValueError, match="applies no patch"):
        paths.adapter_path(BARE)


def test_a_scoring_job_names_its_cells() -> None:
    assert stage_settings.scored_cells([BARE, NATIVE, PORTED], ["a", "b"]) == {
        "un_patched": True,
        "adapter": ["v2/direct/1=a", "base/half/1=b"],
    }
    assert stage_settings.scored_cells([BARE], []) == {"un_patched": True, "adapter": None}
    assert stage_settings.scored_cells([NATIVE], ["a"])["un_patched"] is False
    with pytest.raises(ValueError, match="shorter"):
        stage_settings.scored_cells([NATIVE, PORTED], ["a"])


def test_an_evolution_continues_its_parent() -> None:
    assert paths.parent_path(CONFIG, "m", "v2") == "<results>/models/m/v1"
    assert paths.prepared_paths(CONFIG, "m", "v1") == ["<results>/prepared/m/v1"]
    assert paths.prepared_paths(CONFIG, "m", "v2") == []


def test_artefacts_are_versions_patches_ports_and_scores() -> None:
    assert paths.artefact_paths(CONFIG) == [
        *(f"<results>/models/m/{version}" for version in ("base", "v1", "v2")),
        "<results>/patches/m/base/t/seed7",
        *(f"<results>/ports/m/base/{version}/t/direct/seed7" for version in ("v1", "v2")),
        *(f"<results>/scores/m/{version}/t.json" for version in ("base", "v1", "v2")),
    ]


def test_an_existing_patch_is_fetched_from_where_the_study_says() -> None:
    patch = Patch("m", "base", "t", 7)
    assert paths.patch_path(patch) == f"<results>/patches/{paths.patch_name(patch)}"
    assert stage_settings.fetch_patch_settings(CONFIG, patch) == {
        "path": "mine",
        "names": ["model=m", "trained_on=base", "task=t", "seed=7"],
    }


def test_local_files_are_inputs(tmp_path: Path) -> None:
    assert paths.corpus_files(CONFIG, "c") == ["tales.py", "a.txt", "b.txt"]
    assert paths.task_definition_files(CONFIG, "t") == []
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: base.yaml\n")
    (tmp_path / "base.yaml").write_text("dataset_path: mine\n")
    config = {"tasks": {"t": {"lm_eval": "mine", "include": str(tmp_path)}}}
    result = {path.name for path in paths.task_definition_files(config, "t")}
    assert result == {"mine.yaml", "base.yaml"}
