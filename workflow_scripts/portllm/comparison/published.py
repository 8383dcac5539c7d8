"""Compare scores with published ones: source, difference, and whether the value is possible."""

from pathlib import Path

import pandas

from portllm.errors import InputError

KEYS = ["model", "applied_to", "arm", "task", "metric"]
COLUMNS = [*KEYS, "value", "n", "source"]


def read(path: Path) -> pandas.DataFrame:
    """Read published values; an empty value is unknown.

    `value` is in the metric's unit (a share, not per cent), `n` the number of items.

    Raises:
        InputError: a column is missing, or a value has no source.
    """
    table = pandas.read_csv(path, dtype=dict.fromkeys([*KEYS, "source"], str), comment="#")
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(f"{path}: the column {missing[0]!r} is missing")
    unsourced = table[table["value"].notna() & table["source"].isna()]
    if len(unsourced):
        raise InputError(f"{path}: row {unsourced.index[0] + 2} has a value but no source")
    return table


def is_possible(value: float, items: float, digits: int = 4) -> bool:
    """Whether a share, rounded to `digits`, is a whole number of correct answers out of `items`.

    0.8310 is 59 of 71; no number of 71 gives 0.8208.
    """
    right = round(value * items)
    return any(
        abs(round(count / items, digits) - value) < 0.5 * 10**-digits
        for count in (right - 1, right, right + 1)
        if 0 <= count <= items
    )


def with_published(numbers: pandas.DataFrame, published: pandas.DataFrame) -> pandas.DataFrame:
    """Add `published`, `difference`, `published_possible` and `published_source` to scores."""
    renamed = published.rename(
        columns={"value": "published", "n": "published_n", "source": "published_source"}
    )
    joined = numbers.merge(renamed, on=KEYS, how="left", validate="many_to_one")
    counts = joined["published_n"].fillna(joined["n"])
    possible = [
        None if pandas.isna(value) else is_possible(value, count)
        for value, count in zip(joined["published"], counts, strict=True)
    ]
    return joined.assign(
        difference=joined["value"] - joined["published"], published_possible=possible
    )
