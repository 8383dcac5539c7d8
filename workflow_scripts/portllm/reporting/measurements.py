"""Read measurements of patches and updates, one JSON file per cell, as data frames."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.storage.files import read_json

NAMES = ["model", "version", "trained_on", "task"]


def weights(sources: Iterable[Path]) -> pandas.DataFrame:
    """Read every weight of every file of angles, with the names of its cell.

    Of each list of angles (degrees), only the smallest is kept.
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
    """Combine the angles of several weights: cosines as of one long vector, the rest as means.

    The group's cosine is Σ⟨·,·⟩ / √(Σ‖·‖² · Σ‖·‖²); that of a random direction has the standard
    deviation 1/√(number of elements). Weights that a patch or the update does not change have
    missing values, which are ignored.
    """

    def values(name: str) -> pandas.Series:
        # The column is missing if the two patches change no common weight.
        return pandas.to_numeric(group.get(name, pandas.Series(math.nan, index=group.index)))

    combined: dict[str, float] = {}
    for kind in ("update", "native"):
        inner, square = values(f"{kind}_inner").sum(), (values(f"{kind}_norm") ** 2).sum()
        scale = math.sqrt((values("norm") ** 2).sum() * square)
        combined[f"{kind}_cosine"] = inner / scale if scale > 0 else math.nan
        for side in ("column", "row"):
            for measure in ("angles", "similarity", "expected"):
                name = f"{kind}_{side}_{measure}"
                combined[name] = values(name).mean()
    for side in ("column", "row"):
        for name in (f"update_{side}_energy", f"update_{side}_energy_expected"):
            combined[name] = values(name).mean()
    combined["expected_cosine"] = 1 / math.sqrt((values("expected_cosine") ** -2.0).sum())
    return combined


def angles(sources: Iterable[Path], by: list[str]) -> pandas.DataFrame:
    """Combine the angles of the weights that agree in the columns `by`; average over seeds."""
    groups = weights(sources).groupby([*by, "seed"], sort=False, dropna=False)
    keys = [dict(zip([*by, "seed"], key, strict=True)) for key in groups.groups]
    rows = [key | together(group) for key, (_, group) in zip(keys, groups, strict=True)]
    over_seeds = pandas.DataFrame(rows).groupby(by, sort=False, as_index=False, dropna=False)
    means = over_seeds.mean(numeric_only=True)
    return means.drop(columns="seed", errors="ignore").assign(seeds=over_seeds.size()["size"])


def slices(sources: Iterable[Path]) -> pandas.DataFrame:
    """Read every point of every loss slice, with the names of its cell."""
    rows = []
    for path in sources:
        document = read_json(path)
        names = {name: document[name] for name in (*NAMES, "seed")}
        more = {"un_patched": document["un_patched"]["loss"], "barrier": document["barrier"]}
        rows += [{**names, **point, **more} for point in document["points"]]
    return pandas.DataFrame(rows)
