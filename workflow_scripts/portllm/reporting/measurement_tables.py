"""Tables of what the analysis measured of patches and updates, a JSON file for each cell."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.reporting.formatting import ExhibitSettings, Table
from portllm.storage.files import read_json

NAMES = ["model", "version", "trained_on", "task"]


def weights(sources: Iterable[Path]) -> pandas.DataFrame:
    """Every weight of every file of angles, in their order, with the names of its cell.

    The lists of angles, in degrees and ascending, become their smallest.
    """
    rows = []
    for path in sources:
        document = read_json(path)
        names = {name: document[name] for name in (*NAMES, "seed")}
        rows += [{**names, **_smallest(row)} for row in document["weights"]]
    return pandas.DataFrame(rows)


def _smallest(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: min(value, default=None) if name.endswith("_angles") else value
        for name, value in row.items()
    }


def together(group: pandas.DataFrame) -> dict[str, float]:
    """Angles of several weights: cosines as of one long vector, the others as means.

    The group's cosine is Σ⟨·,·⟩ / √(Σ‖·‖² · Σ‖·‖²); a random direction's would have the standard
    deviation 1/√(number of elements). Missing values, of weights that one of the patches or the
    update leaves alone, are left out of means and add nothing to the sums.
    """

    def values(name: str) -> pandas.Series:
        # No weight has a measure that the patches share no weight for.
        return pandas.to_numeric(group.get(name, pandas.Series(math.nan, index=group.index)))

    found: dict[str, float] = {}
    for kind in ("update", "native"):
        inner, square = values(f"{kind}_inner").sum(), (values(f"{kind}_norm") ** 2).sum()
        scale = math.sqrt((values("norm") ** 2).sum() * square)
        found[f"{kind}_cosine"] = inner / scale if scale > 0 else math.nan
        for side in ("column", "row"):
            for measure in ("angles", "similarity", "expected"):
                name = f"{kind}_{side}_{measure}"
                found[name] = values(name).mean()
    for side in ("column", "row"):
        for name in (f"update_{side}_energy", f"update_{side}_energy_expected"):
            found[name] = values(name).mean()
    found["expected_cosine"] = 1 / math.sqrt((values("expected_cosine") ** -2.0).sum())
    return found


def angles(sources: Iterable[Path], by: list[str]) -> pandas.DataFrame:
    """Angles of the weights that agree in `by`, together; means over seeds, with their number."""
    found = weights(sources)
    groups = found.groupby([*by, "seed"], sort=False, dropna=False)
    keys = [dict(zip([*by, "seed"], key, strict=True)) for key in groups.groups]
    rows = [key | together(group) for key, (_, group) in zip(keys, groups, strict=True)]
    over_seeds = pandas.DataFrame(rows).groupby(by, sort=False, as_index=False, dropna=False)
    means = over_seeds.mean(numeric_only=True)
    return means.drop(columns="seed", errors="ignore").assign(seeds=over_seeds.size()["size"])


def _beside(numbers: pandas.DataFrame, name: str, expected: str | None, shown: str) -> list[str]:
    """Values as text, each with what is expected of random directions in brackets."""
    sign = "±{:.3f}" if expected == "expected_cosine" else shown
    texts = []
    for place, value in enumerate(numbers[name]):
        random = "" if expected is None else f" ({sign.format(numbers[expected].iloc[place])})"
        texts.append("–" if pandas.isna(value) else shown.format(value) + random)
    return texts


NOTES = (
    "In brackets: what random directions would give, the standard deviation of a cosine and the "
    "mean of a share. Columns and rows: the spaces that a change puts out and reacts to. Both "
    "patches of one seed have started from the same random A, which their rows keep; columns are "
    "learnt alone.",
)

# Title, measure, what random directions give, and the number's shape.
_COLUMNS = (
    ("cos(Δθ, θ′ − θ)", "update_cosine", "expected_cosine", "{:+.3f}"),
    ("smallest angle, degrees", "update_column_angles", None, "{:.0f}"),
    ("update in its columns", "update_column_energy", "update_column_energy_expected", "{:.0%}"),
    ("cos(Δθ, Δθ′)", "native_cosine", "expected_cosine", "{:+.3f}"),
    ("shared columns", "native_column_similarity", "native_column_expected", "{:.0%}"),
    ("shared rows", "native_row_similarity", "native_row_expected", "{:.0%}"),
)


def geometry(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Angles per version and task, of all weights together or apart by module or layer.

    In brackets is what random directions would give: a cosine's standard deviation, a share's mean.
    """
    by = settings.get("by", "version")
    keys = NAMES if by == "version" else [*NAMES, by]
    numbers = angles(sources, keys)
    text = numbers[keys].copy()
    for name in ("model", "trained_on"):
        if text[name].nunique() == 1:
            text = text.drop(columns=name)
    text = text.rename(columns={"trained_on": "trained on"})
    text = text.assign(**{title: _beside(numbers, *column) for title, *column in _COLUMNS})
    return Table(numbers, text, NOTES)


def slices(sources: Iterable[Path]) -> pandas.DataFrame:
    """Every point of every loss slice, in their order, with the names of its cell."""
    rows = []
    for path in sources:
        document = read_json(path)
        names = {name: document[name] for name in (*NAMES, "seed")}
        more = {"un_patched": document["un_patched"]["loss"], "barrier": document["barrier"]}
        rows += [{**names, **point, **more} for point in document["points"]]
    return pandas.DataFrame(rows)
