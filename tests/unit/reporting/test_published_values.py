"""Published values under a table of any kind, each with its source."""

from pathlib import Path

import pandas
import pytest
from conftest import PROJECT
from exhibit_making import KINDS

from portllm.errors import InputError
from portllm.reporting.formatting import Table
from portllm.reporting.published_values import with_published

NUMBERS = pandas.DataFrame(
    {"model": ["m", "m"], "version": ["v1", "v2"], "seeds": [1, 1], "naive_norm": [1.5, 2.5]}
)
TABLE = Table(NUMBERS, NUMBERS.astype(str), ("a note",))


def published(folder: Path, *rows: str, header: str = "model,version,column,value,source") -> Path:
    path = folder / "known.csv"
    path.write_text("\n".join(["# where they are from", header, *rows, ""]))
    return path


def test_a_published_value_stands_next_to_ours(tmp_path: Path) -> None:
    path = published(tmp_path, "m,v2,naive_norm,2.25,a paper", "m,v1,naive_norm,,")
    table = with_published(TABLE, path)
    assert table.notes == (
        "a note",
        "Published (a paper): naive_norm of m, v2 is 2.25; here 2.5.",
    )
    assert table.numbers["published_naive_norm"].tolist()[1] == 2.25
    assert table.numbers["published_naive_norm"].isna().tolist() == [True, False]
    assert "published_naive_norm" not in TABLE.numbers


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("m,v2,naive_norm,2.25,", "m, v2: a value without a source"),
        ("m,v3,naive_norm,2.25,a paper", "m, v3: found 0 such rows, expected one"),
        ("m,v2,naiv_norm,2.25,a paper", "the table has no column 'naiv_norm'; nearest: naive_norm"),
    ],
)
def test_a_value_that_cannot_be_shown_is_an_error(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"known\.csv: {message}"):
        with_published(TABLE, published(tmp_path, row))


def test_a_file_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the column 'source' is missing"):
        with_published(TABLE, published(tmp_path, header="model,column,value"))


def test_every_kind_of_table_takes_published_values() -> None:
    for kind in KINDS.of_group("tables").values():
        assert kind.own_files({"published": "known.csv"}) == ["known.csv"]
    assert not any("published" in kind.all_keys for kind in KINDS.of_group("figures").values())


@pytest.mark.parametrize("name", ["norms", "continual", "architectures"])
def test_the_templates_name_what_the_papers_study_makes(name: str) -> None:
    text = (PROJECT / f"resources/published/portllm_{name}.csv").read_text()
    rows = pandas.read_csv(
        PROJECT / f"resources/published/portllm_{name}.csv", comment="#", dtype=str
    )
    assert text.startswith("# Khan et al., PortLLM, ICLR 2025 (arXiv 2410.10870)")
    # Nothing is published here without a source.
    assert not (rows["value"].notna() & rows["source"].isna()).any()
