"""The line about sources on the hub that have no revision."""

from pathlib import Path
from typing import Any

import yaml
from conftest import PROJECT
from exhibit_making import KINDS

from portllm.study import config as configuration
from portllm.study import summary


def load(study: str, **more: Any) -> dict[str, Any]:
    config = yaml.safe_load((PROJECT / study).read_text())
    schema = PROJECT / "config" / "schema.yaml"
    return configuration.load({**config, **more}, schema=schema, exhibits=KINDS)


def test_sources_without_a_revision_are_named() -> None:
    [line] = summary.unpinned_sources(load("config/paper.yaml"))
    assert line.startswith(
        "no revision for corpora.openorca.sources[0] (Open-Orca/OpenOrca), corpora.slimorca"
    )
    # The models are pinned.
    assert "models." not in line


def test_studies_without_such_sources_have_no_line(tmp_path: Path) -> None:
    assert summary.unpinned_sources(load("config.yaml")) == []
    assert summary.unpinned_sources(load("config/paper.yaml", hub_mirror=str(tmp_path))) == []
