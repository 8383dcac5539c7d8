"""Names of models and adapters: directories, and ids on the hub."""

from pathlib import Path

import pytest

from portllm.data import fetching, references
from portllm.data.references import HubId, Source
from portllm.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubId("owner/name")),
        ("owner/name@v1.2", HubId("owner/name", "v1.2")),
        ("owner/name@refs/pr/3", HubId("owner/name", "refs/pr/3")),
        ("owner/name:a/b", HubId("owner/name", None, "a/b")),
        ("owner/name@main:a/b/", HubId("owner/name", "main", "a/b")),
        ("name", None),
        ("./owner/name", None),
        ("../name", None),
        ("/models/name", None),
        ("models/family/name", None),
        ("owner/name:", None),
        ("owner/name@", None),
    ],
)
def test_hub_ids_are_parsed(text: str, expected: HubId | None) -> None:
    assert references.parse_hub_id(text) == expected


def test_an_existing_directory_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert references.is_remote("owner/name")
    Path("owner/name").mkdir(parents=True)
    assert not references.is_remote("owner/name")
    source = references.locate("owner/name", fetching.MODEL, option="--base")
    assert source == Source(Path("owner/name"))
    assert source.provenance() is None


def test_a_mirror_replaces_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name" / "sub").mkdir(parents=True)
    mirror = str(tmp_path)
    source = references.locate("owner/name:sub", fetching.MODEL, option="--base", mirror=mirror)
    assert source.directory == tmp_path / "owner" / "name" / "sub"
    assert source.base_name == "owner/name"
    assert source.provenance() == {"hub": "owner/name", "subfolder": "sub"}
    with pytest.raises(InputError, match=r"--base: neither owner/other nor .*owner/other"):
        references.locate("owner/other", fetching.MODEL, option="--base", mirror=mirror)


def test_other_text_is_neither(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--patch: .*absent is neither a directory here nor a"):
        references.locate(str(tmp_path / "absent"), fetching.ADAPTER, option="--patch")
