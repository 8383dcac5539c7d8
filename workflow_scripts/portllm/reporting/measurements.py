"""Measurements of patches and updates, one JSON file for each cell, as data frames."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

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


def slices(sources: Iterable[Path]) -> pandas.DataFrame:
    """Every point of every loss slice, in their order, with the names of its cell."""
    rows = []
    for path in sources:
        document = read_json(path)
        names = {name: document[name] for name in (*NAMES, "seed")}
        more = {"un_patched": document["un_patched"]["loss"], "barrier": document["barrier"]}
        rows += [{**names, **point, **more} for point in document["points"]]
    return pandas.DataFrame(rows)
