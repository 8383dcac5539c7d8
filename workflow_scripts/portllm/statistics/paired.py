"""Two arms on the same items: their difference, whether it is small enough, and what it broke.

Arms are (items, seeds) numbers, or (items, seeds, 2) pairs of classes for `f1` and `mcc`; an arm
without seeds, such as an un-patched model, has one column and stands beside every seed of the
other. Differences are first minus second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray
from scipy import optimize, stats

from portllm.errors import InputError
from portllm.statistics import aggregations, resampling, seeds
from portllm.statistics.aggregations import Array
from portllm.statistics.estimates import LEVEL, RESAMPLES, SEED, proportion_interval


@dataclass(frozen=True)
class Difference:
    """How much higher the first arm scores; `test` and `interval` say how that was judged."""

    value: float
    stderr: float
    low: float
    high: float
    p_value: float
    n: int
    seeds: int
    test: str
    interval: str


@dataclass(frozen=True)
class Equivalence:
    """Whether two arms differ by less than `margin`.

    `p_inside` tests that they differ by the margin or more, `p_outside` that by the margin or less.
    """

    margin: float
    p_inside: float
    p_outside: float


@dataclass(frozen=True)
class Flips:
    """Shares of all items that one arm has right and the other wrong, each with its interval.

    Negative: right before and wrong after. Positive: wrong before and right after.
    """

    negative: float
    negative_low: float
    negative_high: float
    positive: float
    positive_low: float
    positive_high: float
    n: int


@dataclass(frozen=True)
class _Evidence:
    """What is known of a difference: one-sided p-values against any bound, and intervals.

    `above(bound)` tests that the difference is `bound` or less, `below(bound)` that it is `bound`
    or more.
    """

    value: float
    stderr: float
    above: Callable[[float], float]
    below: Callable[[float], float]
    within: Callable[[float], tuple[float, float]]
    p_value: float
    test: str
    interval: str


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's (1947) test from the items that one arm alone has right.

    It is the binomial test of a half among them (scipy.stats.binomtest); without any, p is 1.
    """
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def _tango_score(first_only: int, second_only: int, n: int, difference: float) -> float:
    """Tango's (1998, Statistics in Medicine 17:891) score statistic of a paired difference.

    z(δ) = (b − c − nδ) / √(n(2q + δ − δ²)), where q is the most likely share of `second_only` under
    a difference of δ, the larger root of 2n·q² + ((2n − b + c)δ − b − c)·q − cδ(1 − δ).
    """
    b, c = first_only, second_only
    above = b - c - n * difference
    middle = (2 * n - b + c) * difference - b - c
    root = math.sqrt(max(0.0, middle**2 + 8 * n * c * difference * (1 - difference)))
    share = (root - middle) / (4 * n)
    variance = n * (2 * share + difference - difference**2)
    if variance <= 0 or above == 0:
        return math.copysign(math.inf, above) if above else 0.0
    return above / math.sqrt(variance)


def tango_interval(
    first_only: int, second_only: int, n: int, level: float = LEVEL
) -> tuple[float, float]:
    """Tango's score interval of a paired difference of shares: all δ with |z(δ)| ≤ z."""
    z = float(stats.norm.ppf((1 + level) / 2))

    middle = (first_only - second_only) / n

    def end(bound: float, limit: float) -> float:
        if middle == limit:
            return limit
        # The statistic falls with δ, from infinity at −1 to minus infinity at 1.
        return float(
            optimize.brentq(
                lambda difference: _tango_score(first_only, second_only, n, difference) - bound,
                middle,
                limit * (1 - 1e-12),
                xtol=1e-12,
            )
        )

    return end(z, -1.0), end(-z, 1.0)


def _of_counts(first: Array, second: Array) -> _Evidence:
    """One run of right and wrong items on each side."""
    n = len(first)
    first_only = int(((first == 1) & (second == 0)).sum())
    second_only = int(((first == 0) & (second == 1)).sum())
    difference = (first - second)[:, 0]

    def z(bound: float) -> float:
        return _tango_score(first_only, second_only, n, bound)

    return _Evidence(
        value=float(difference.mean()),
        stderr=float(difference.std(ddof=1)) / math.sqrt(n),
        above=lambda bound: float(stats.norm.sf(z(bound))),
        below=lambda bound: float(stats.norm.cdf(z(bound))),
        within=lambda level: tango_interval(first_only, second_only, n, level),
        p_value=mcnemar(first_only, second_only),
        test="McNemar, exact",
        interval="Tango",
    )


def _of_seeds(first: Array, second: Array) -> _Evidence:
    """Several seeds whose scores are means: items and seeds are both random."""
    difference = first - second
    found = seeds.mixed(difference)
    # As in `_of_resamples`: no evidence that the arms are equivalent.
    alike = not difference.any()

    def t(bound: float) -> float:
        above = found.mean - bound
        if found.stderr > 0:
            return above / found.stderr
        return math.copysign(math.inf, above) if above else 0.0

    def within(level: float) -> tuple[float, float]:
        again = seeds.mixed(difference, level)
        return again.low, again.high

    return _Evidence(
        value=found.mean,
        stderr=found.stderr,
        above=lambda bound: 1.0 if alike else float(stats.t.sf(t(bound), found.df)),
        below=lambda bound: 1.0 if alike else float(stats.t.cdf(t(bound), found.df)),
        within=within,
        p_value=float(2 * stats.t.sf(abs(t(0.0)), found.df)),
        test="t, items × seeds",
        interval="t, items × seeds",
    )


def _of_resamples(
    first: Array, second: Array, aggregation: str, resamples: int, seed: int
) -> _Evidence:
    """All else: resamples of the items that both arms share."""
    one, other = resampling.resampled([first, second], aggregation, resamples, seed)
    drawn = one - other
    scores = [aggregations.by_seed(values, aggregation).mean() for values in (first, second)]

    # Where no item differs no resample does, which tells nothing of the items that were not drawn:
    # it is no evidence that the arms are equivalent, and no interval.
    alike = not drawn.any()

    # One is added to both counts: the sample itself is a resample (Davison and Hinkley 1997, 4.2).
    def above(bound: float) -> float:
        return 1.0 if alike else float((1 + (drawn <= bound).sum()) / (1 + resamples))

    def below(bound: float) -> float:
        return 1.0 if alike else float((1 + (drawn >= bound).sum()) / (1 + resamples))

    def within(level: float) -> tuple[float, float]:
        return (math.nan, math.nan) if alike else resampling.percentiles(drawn, level)

    return _Evidence(
        value=float(scores[0] - scores[1]),
        stderr=float(drawn.std(ddof=1)),
        above=above,
        below=below,
        within=within,
        p_value=min(1.0, 2 * min(above(0.0), below(0.0))),
        test="bootstrap",
        interval="bootstrap",
    )


def _evidence(
    first: NDArray, second: NDArray, aggregation: str, resamples: int, seed: int
) -> tuple[_Evidence, int, int]:
    one, other = aggregations.arm(first, aggregation), aggregations.arm(second, aggregation)
    columns = max(one.shape[1], other.shape[1])
    if len(one) != len(other):
        raise InputError(f"arms need the same items; found {len(one)} and {len(other)}")
    if {one.shape[1], other.shape[1]} - {1, columns}:
        raise InputError(
            f"arms need the same seeds; found {one.shape[1]} and {other.shape[1]} of them"
        )
    if aggregation != "mean":
        found = _of_resamples(one, other, aggregation, resamples, seed)
    elif columns > 1:
        found = _of_seeds(one, other)
    elif aggregations.is_binary(one) and aggregations.is_binary(other):
        found = _of_counts(one, other)
    else:
        found = _of_resamples(one, other, aggregation, resamples, seed)
    return found, len(one), columns


def difference(
    first: NDArray,
    second: NDArray,
    aggregation: str = "mean",
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Compare two arms on the same items, in the same order.

    One run each of right and wrong items: McNemar's exact test and Tango's interval. Several seeds:
    Student's t with the noise of items and of seeds (`seeds.mixed`). All else: the paired bootstrap
    (Efron and Tibshirani 1993, chapter 13; for metrics such as F1, Koehn 2004), its percentile
    interval, missing where no item differs, and twice the smaller share of resamples on one side
    of zero as p.
    Raises InputError for other numbers of items or seeds.
    """
    found, n, columns = _evidence(first, second, aggregation, resamples, seed)
    low, high = found.within(level)
    return Difference(
        value=found.value,
        stderr=found.stderr,
        low=low,
        high=high,
        p_value=found.p_value,
        n=n,
        seeds=columns,
        test=found.test,
        interval=found.interval,
    )


def equivalence(
    first: NDArray,
    second: NDArray,
    margin: float,
    aggregation: str = "mean",
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Equivalence:
    """Test whether two arms differ by less than `margin`, in the metric's own unit.

    Two one-sided tests (Schuirmann 1987): `p_inside` is the larger p of difference ≤ −margin and
    difference ≥ margin. For right and wrong items each is Tango's score test, made for this; else
    that of `difference`. `p_outside`, of a difference beyond the margin, is twice the smaller p of
    difference ≤ margin and difference ≥ −margin. Raises InputError for a margin of zero or less.
    """
    if not margin > 0:
        raise InputError(f"found an equivalence margin of {margin}, expected more than 0")
    found, _, _ = _evidence(first, second, aggregation, resamples, seed)
    return Equivalence(
        margin=margin,
        p_inside=max(found.above(-margin), found.below(margin)),
        p_outside=min(1.0, 2 * min(found.above(margin), found.below(-margin))),
    )


def verdict(p_inside: float, p_outside: float, level: float = LEVEL) -> str:
    """Say whether two arms are comparable: `yes`, `no`, or `not shown` either way."""
    if p_inside < 1 - level:
        return "yes"
    return "no" if p_outside < 1 - level else "not shown"


def _share(flipped: Array, level: float) -> tuple[float, float, float]:
    if flipped.shape[1] == 1:
        share = float(flipped.mean())
        return share, *proportion_interval(share, len(flipped), level)
    found = seeds.mixed(flipped, level)
    if found.stderr == 0:
        return found.mean, *proportion_interval(found.mean, len(flipped), level)
    return found.mean, max(0.0, found.low), min(1.0, found.high)


def flips(before: NDArray, after: NDArray, level: float = LEVEL) -> Flips:
    """Shares of items that were right and are wrong, and the other way round.

    The negative-flip rate of Yan et al. (2021, Positive-congruent training, CVPR), over all items.
    Arms are (items, seeds) of right (1) and wrong (0). The interval is Wilson's, or for several
    seeds that of `seeds.mixed` where they differ. Raises InputError for items that are neither.
    """
    first, second = aggregations.arm(before, "mean"), aggregations.arm(after, "mean")
    if not (aggregations.is_binary(first) and aggregations.is_binary(second)):
        raise InputError("flips are of items that are right (1) or wrong (0); found another value")
    if len(first) != len(second):
        raise InputError(f"arms need the same items; found {len(first)} and {len(second)}")
    negative = _share(((first == 1) & (second == 0)).astype(float), level)
    positive = _share(((first == 0) & (second == 1)).astype(float), level)
    return Flips(*negative, *positive, n=len(first))
