"""Compare arms item by item: differences, equivalence, flips, recovery, seeds.

Settings are those of a table: `arms`, `recovery` (the role of each arm) and `statistics`. Values
are in their metric's unit.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy
import pandas

from portllm import statistics
from portllm.comparison import item_scores, score_table
from portllm.errors import InputError
from portllm.scoring import metrics
from portllm.statistics import aggregations

Settings = dict[str, Any]
# One row of a table: model, version, task and metric.
PLACE = ["model", "applied_to", "task", "metric"]
TESTED = ("p_value", "p_inside", "p_outside")


def _names(*kinds: type) -> list[str]:
    """List the columns that come from result classes of the statistics."""
    return list(dict.fromkeys(field.name for kind in kinds for field in fields(kind)))


RECOVERIES = [*PLACE, *_names(statistics.Recovery)]
INTERVALS = [*PLACE, "arm", "low", "high", "interval"]
SEEDS = [*PLACE, "arm", *_names(statistics.Seeds, statistics.Mixed)]
COMPARISONS = [
    *PLACE,
    *("arm", "against"),
    *_names(statistics.Difference, statistics.Equivalence, statistics.Flips),
    *(f"{name}_holm" for name in TESTED),
    *("tests", "level", "comparable"),
]

TIES = ["ties", "ties_low", "ties_high"]
"""Columns of a table with ties: tied items, and the difference with all of them against and for."""


class Arms:
    """The runs of each arm by seed, for one model, version, task and metric.

    The seed of an un-patched model is `none`.
    """

    def __init__(self, rows: pandas.DataFrame) -> None:
        self.aggregation: str = rows["aggregation"].iloc[0]
        self._runs: dict[str, dict[str, statistics.Run]] = {}
        for arm, seed, run in zip(rows["arm"], rows["seed"], rows["run"], strict=True):
            self._runs.setdefault(arm, {})[seed] = run

    def __contains__(self, arm: str) -> bool:
        return arm in self._runs

    def together(self, *arms: str) -> list[Any]:
        """Return the values of several arms, (items, seeds) each, for the seeds that they share.

        Raises:
            InputError: the arms have different items or no common seed.
        """
        runs = [self._common_runs(arm, *arms) for arm in arms]
        for of_arm in runs[1:]:
            statistics.check_same_items(runs[0][0], of_arm[0])
        return [statistics.stacked(of_arm) for of_arm in runs]

    def _common_runs(self, arm: str, *arms: str) -> list[statistics.Run]:
        """Return the runs of one arm for the seeds that several share."""
        seeded = [self._runs[arm] for arm in arms if score_table.NONE not in self._runs[arm]]
        common = [seed for seed in next(iter(seeded), {}) if all(seed in one for one in seeded)]
        if seeded and not common:
            first = next(iter(seeded[0].values()))
            listed = " and ".join(", ".join(one) for one in seeded)
            raise InputError(f"{first.name}: {' and '.join(arms)} share no seed; found {listed}")
        of_arm = self._runs[arm]
        return [of_arm[seed] for seed in common if seed in of_arm] or [of_arm[score_table.NONE]]

    def tied_items(self, *arms: str) -> int:
        """Count the items whose choice is a tie in a run of any of the arms."""
        runs = [run for arm in arms for run in self._runs[arm].values()]
        return len(set().union(*(run.tied for run in runs)))

    def difference_over_ties(self, arm: str, against: str) -> tuple[float, float]:
        """Return the least and greatest difference of two arms over their ties."""

        def mean(name: str, end: int) -> float:
            runs = [run.bounds()[end] for run in self._common_runs(name, arm, against)]
            return float(numpy.mean(runs))

        return mean(arm, 0) - mean(against, 1), mean(arm, 1) - mean(against, 0)

    def seeds(self, arm: str) -> list[statistics.Run]:
        """List the runs of one arm."""
        return list(self._runs[arm].values())


def places(results: list[Path], settings: Settings) -> Iterator[tuple[dict[str, str], Arms]]:
    """Yield every model, version, task and metric of scoring jobs, with the runs of its arms."""
    table = score_table.selected(item_scores.read(results), settings)
    for key, rows in score_table.of_arms(table, settings["arms"]).groupby(PLACE, sort=False):
        yield dict(zip(PLACE, key, strict=True)), Arms(rows)


def compare(results: list[Path], settings: Settings) -> pandas.DataFrame:
    """Compare the ported arms with re-fine-tuning and with zero-shot, on the same items.

    Holm's correction applies to the family of all rows that compare the same two arms. The margin
    is in percentage points, so metrics that are not percentages have no verdict.
    """
    roles, stated = settings["recovery"], settings["statistics"]
    drawn = {"resamples": stated["resamples"], "seed": stated["seed"]}
    rows = []
    for place, arms in places(results, settings):
        margin = stated["margin"] / 100 if metrics.factor(place["metric"]) == 100 else math.nan
        for ported in settings["ported"]:
            for other in (roles["re_fine_tuned"], roles["zero_shot"]):
                if ported not in arms or other not in arms:
                    continue
                first, second = arms.together(ported, other)
                kind = arms.aggregation
                difference = statistics.difference(
                    first, second, kind, level=stated["level"], **drawn
                )
                row = {
                    **place,
                    "arm": ported,
                    "against": other,
                    **asdict(difference),
                    "margin": margin,
                }
                if not math.isnan(margin):
                    row |= asdict(statistics.equivalence(first, second, margin, kind, **drawn))
                rows.append(
                    row | _flips(second, first, kind, stated["level"]) | _ties(arms, ported, other)
                )
    tied = TIES if any("ties" in row for row in rows) else []
    return _corrected(pandas.DataFrame(rows, columns=[*COMPARISONS, *tied]), stated["level"])


def _ties(arms: Arms, arm: str, against: str) -> dict[str, float]:
    """Return how many items are ties, and the difference's ends over them; empty without ties."""
    count = arms.tied_items(arm, against)
    if not count:
        return {}
    low, high = arms.difference_over_ties(arm, against)
    return {"ties": count, "ties_low": low, "ties_high": high}


def _flips(before: Any, after: Any, aggregation: str, level: float) -> dict[str, float]:
    """Return the flips of items that are correct or wrong; empty for items with other values."""
    right = [
        values if aggregation == "mean" else (values[..., 0] == values[..., 1]).astype(float)
        for values in (before, after)
    ]
    if not all(map(aggregations.is_binary, right)):
        return {}
    flips = asdict(statistics.flips(*right, level=level))
    return {name: value for name, value in flips.items() if name != "n"}


def _corrected(table: pandas.DataFrame, level: float) -> pandas.DataFrame:
    """Add adjusted p-values, the number of tests in the family, and verdicts."""
    for name in TESTED:
        for _, family in table.groupby(["arm", "against"]):
            known = family[name].dropna()
            table.loc[known.index, f"{name}_holm"] = statistics.holm(known.to_numpy())
    table["tests"] = table.groupby(["arm", "against"])["p_value"].transform("size")
    table["level"] = level
    pairs = zip(table["p_inside_holm"], table["p_outside_holm"], strict=True)
    table["comparable"] = [
        None if math.isnan(inside) else statistics.verdict(inside, outside, level)
        for inside, outside in pairs
    ]
    return table


def recoveries(results: list[Path], settings: Settings) -> pandas.DataFrame:
    """Return the recovery of the ported arm with its interval, wherever all three arms exist."""
    roles = settings["recovery"]
    required = [roles[role] for role in ("ported", "zero_shot", "re_fine_tuned")]
    rows = []
    for place, arms in places(results, settings):
        if all(arm in arms for arm in required):
            recovery = statistics.recovery(
                *arms.together(*required), arms.aggregation, **settings["statistics"]
            )
            rows.append({**place, **asdict(recovery)})
    return pandas.DataFrame(rows, columns=RECOVERIES)


def _has_other_scores(result: Path) -> bool:
    cells = score_table.read_result(result)["cells"]
    return not all(metrics.is_proportion(metric) for cell in cells for metric in cell["metrics"])


def intervals(results: list[Path], settings: Settings) -> pandas.DataFrame:
    """Return bootstrap intervals of scores that are not proportions, averaged over seeds.

    Averaged, because seeds share their items: the interval of the mean is no narrower than that of
    one seed.
    """
    rows = []
    # Most tasks have only proportions, and reading items is slow.
    for place, arms in places(list(filter(_has_other_scores, results)), settings):
        if metrics.is_proportion(place["metric"]):
            continue
        for arm in settings["arms"]:
            if arm not in arms:
                continue
            scores = pandas.DataFrame(
                statistics.score(run.values, arms.aggregation, **settings["statistics"])
                for run in arms.seeds(arm)
            )
            ends = scores[["low", "high"]].mean().to_dict()
            rows.append({**place, "arm": arm, **ends, "interval": scores["interval"].iloc[0]})
    return pandas.DataFrame(rows, columns=INTERVALS)


def seeds(results: list[Path], settings: Settings) -> pandas.DataFrame:
    """Return mean and standard deviation of arms with several seeds, with item and seed noise.

    The noise is split for scores that are means of their items.
    """
    rows = []
    for place, arms in places(results, settings):
        for arm in settings["arms"]:
            if arm not in arms or len(arms.seeds(arm)) < 2:
                continue
            values = statistics.stacked(arms.seeds(arm))
            row = {**place, "arm": arm, **asdict(statistics.over_seeds(values, arms.aggregation))}
            if arms.aggregation == "mean":
                row |= asdict(statistics.mixed(values, settings["statistics"]["level"]))
            rows.append(row)
    return pandas.DataFrame(rows, columns=SEEDS)
