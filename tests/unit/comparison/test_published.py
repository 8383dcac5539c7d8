"""Published scores are shown next to ours, and impossible ones are marked."""

from pathlib import Path

import pandas
import pytest
from exhibit_making import make_table
from hypothesis import given
from hypothesis import strategies as st

from portllm.comparison import published
from portllm.errors import InputError

CSV = "resources/published/portllm_main.csv"


def test_known_cells_of_wnli() -> None:
    assert published.is_possible(0.8310, 71)
    assert not published.is_possible(0.8208, 71)


@given(items=st.integers(1, 5000), share=st.floats(0, 1))
def test_every_number_of_right_answers_is_possible(items: int, share: float) -> None:
    right = round(share * items)
    assert published.is_possible(round(right / items, 4), items)


def test_the_file_has_every_cell_and_no_value_without_source() -> None:
    table = published.read(Path(CSV))
    assert not table.duplicated(published.KEYS).any()
    # Nine metrics; two arms on the base, three on each of four versions.
    assert len(table) == 9 * (2 + 3 * 4)
    assert table.loc[table["value"].notna(), "source"].notna().all()


def test_a_value_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    header = ",".join(published.COLUMNS)
    path.write_text(f'{header}\nm,base,zero-shot,t,"acc,none",0.5,71,\n')
    with pytest.raises(InputError, match=r"published\.csv: row 2 has a value but no source"):
        published.read(path)
    path.write_text("model,task\nm,t\n")
    with pytest.raises(InputError, match=r"the column 'applied_to' is missing"):
        published.read(path)


def test_the_main_table_shows_them(tmp_path: Path) -> None:
    rows = []
    for applied_to, trained_on, method, value in (
        ("base", "none", "none", 0.5),
        ("v2", "none", "none", 0.8),
        ("v2", "base", "direct", 0.8310),
    ):
        rows.append(
            ["m", "wnli", applied_to, trained_on, method, "none", "acc,none", value, 0.04, 71]
        )
    columns = ["model", "task", "applied_to", "trained_on", "method", "seed"]
    source = tmp_path / "scores.csv"
    pandas.DataFrame(rows, columns=[*columns, "metric", "value", "stderr", "n"]).to_csv(
        source, index=False
    )
    known = tmp_path / "published.csv"
    known.write_text(
        ",".join(published.COLUMNS)
        + '\nm,v2,zero-shot,wnli,"acc,none",0.8208,71,a paper'
        + '\nm,v2,ported,wnli,"acc,none",0.8310,71,a paper\n'
    )
    arms = {
        "zero-shot": {"trained_on": "none", "applied_to": "all", "method": "direct"},
        "ported": {"trained_on": "base", "applied_to": "later", "method": "direct"},
    }
    table = make_table(
        "main",
        [source],
        {"kind": "main", "arms": arms, "published": str(known), "statistics": {"level": 0.95}},
    )
    assert table.text["wnli, n = 71"].tolist() == [
        "50.0 ± 4.0",
        "80.0 ± 4.0 [82.08*, -2.1]",
        "83.1 ± 4.0 [83.10, +0.0]",
    ]
    numbers = table.numbers.set_index(["applied_to", "arm"])
    assert numbers.loc[("v2", "zero-shot"), "published_source"] == "a paper"
    assert not numbers.loc[("v2", "zero-shot"), "published_possible"]
    assert pandas.isna(numbers.loc[("base", "zero-shot"), "published"])
