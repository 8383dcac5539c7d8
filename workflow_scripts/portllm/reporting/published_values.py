"""Write published values under a table of any kind, next to the table's own."""

from dataclasses import replace
from pathlib import Path

import pandas

from portllm.errors import InputError, nearest
from portllm.reporting.formatting import Table

VALUE = ("column", "value", "source")
"""Columns of a file of published values; all others select the row of the table."""


def with_published(table: Table, path: Path) -> Table:
    """Add published values to a table's numbers, as `published_COLUMN`, and to its notes.

    A value that nobody has entered yet is left out.

    Args:
        table: the table.
        path: a CSV with the columns `column`, `value` (in the unit of the table's numbers) and
            `source`. Its other columns have the names of columns of the table's numbers.

    Raises:
        InputError: a column is missing or unknown, a value has no source, or a value does not
            belong to exactly one row.
    """
    known = pandas.read_csv(path, comment="#", dtype=str, keep_default_na=False)
    for column in VALUE:
        if column not in known:
            raise InputError(f"{path}: the column {column!r} is missing")
    keys = [column for column in known if column not in VALUE]
    for column in [*keys, *known["column"]]:
        if column not in table.numbers:
            raise InputError(
                f"{path}: the table has no column {column!r}; {nearest(column, table.numbers)}"
            )
    numbers, notes = table.numbers.copy(), []
    for row in known.to_dict("records"):
        if not row["value"]:
            continue
        place = ", ".join(str(row[key]) for key in keys)
        if not row["source"]:
            raise InputError(f"{path}: {place}: a value without a source")
        texts = numbers[keys].astype(str)
        matching = numbers.index[(texts == [str(row[key]) for key in keys]).all(axis=1)]
        if len(matching) != 1:
            raise InputError(f"{path}: {place}: found {len(matching)} such rows, expected one")
        name = f"published_{row['column']}"
        numbers.loc[matching, name] = float(row["value"])
        ours = numbers.loc[matching[0], row["column"]]
        notes.append(
            f"Published ({row['source']}): {row['column']} of {place} is {row['value']}; "
            f"here {ours:.4g}."
        )
    return replace(table, numbers=numbers, notes=(*table.notes, *notes))
