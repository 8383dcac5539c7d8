"""Corpora from files, generators and mirrors of the hub."""

import json
from pathlib import Path

import pytest

from portllm.data import corpora
from portllm.errors import InputError


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "owner" / "questions"
    folder.mkdir(parents=True)
    rows = [{"question": f"q{number}?", "answer": str(number)} for number in range(5)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "mirror"


def test_a_mirror_replaces_the_hub(mirror: Path) -> None:
    source = {"hub": "owner/questions", "fields": {"text": "{question} {answer}"}, "limit": 2}
    rows = corpora.rows_of_corpus({"sources": [source]}, str(mirror))
    assert rows == [{"text": "q0? 0"}, {"text": "q1? 1"}]


def test_sources_are_concatenated_and_shuffled_by_seed(mirror: Path) -> None:
    source = {"hub": "owner/questions"}
    definition = {"sources": [source, source]}
    plain = corpora.rows_of_corpus(definition, str(mirror))
    shuffled = corpora.rows_of_corpus({**definition, "seed": 1}, str(mirror))
    assert len(plain) == 10
    assert plain[:5] == plain[5:]
    assert shuffled != plain
    assert sorted(map(str, shuffled)) == sorted(map(str, plain))
    assert (
        corpora.rows_of_corpus({**definition, "seed": 1, "limit": 3}, str(mirror)) == shuffled[:3]
    )


def test_a_missing_dataset_and_a_missing_column_are_errors(mirror: Path) -> None:
    with pytest.raises(InputError, match="has no dataset owner/answers"):
        corpora.rows_of_corpus({"sources": [{"hub": "owner/answers"}]}, str(mirror))
    source = {"hub": "owner/questions", "fields": {"text": "{questoin}"}}
    with pytest.raises(InputError, match="no column 'questoin'; nearest: question"):
        corpora.rows_of_corpus({"sources": [source]}, str(mirror))


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    rows = corpora.rows_of_corpus({"sources": [{"files": [str(tmp_path / "text.txt")]}]})
    assert [row["text"] for row in rows] == ["one", "two"]
    (tmp_path / "text.doc").write_text("one")
    with pytest.raises(InputError, match=r"text\.doc: found type '\.doc', expected one of \.jsonl"):
        corpora.rows_of_corpus({"sources": [{"files": [str(tmp_path / "text.doc")]}]})


def test_a_wrong_argument_of_a_generator_is_an_error() -> None:
    source = {"generator": "resources/demo/generate.py:tales", "arguments": {"sed": 1}}
    with pytest.raises(InputError, match=r"generate\.py:tales: .*'sed'"):
        corpora.rows_of_corpus({"sources": [source]})
