"""Compare two arms on the same items: difference, equivalence and flips.

Arms are (items, seeds) numbers, or (items, seeds, 2) pairs of classes for `f1` and `mcc`. An arm
without seeds, such as an un-patched model, has one column, which is compared with every seed of the
other arm. Differences are first minus second.
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
    """How much higher the first arm scores; `test` and `interval` name the methods used."""

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

    `p_inside` is the p-value of "they differ by the margin or more", `p_outside` that of "they
    differ by the margin or less".
    """

    margin: float
    p_inside: float
    p_outside: float


@dataclass(frozen=True)
class Flips:
    """Shares of all items that changed, each with its interval.

    Negative: correct before and wrong after. Positive: wrong before and correct after.
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
    """The distribution of a difference: one-sided p-values against any bound, and intervals.

    `above(bound)` is the p-value of "the difference is `bound` or less", `below(bound)` that of
    "`bound` or more", `within(level)` the interval.
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
    """Return the exact two-sided p-value of McNemar's (1947) test.

    It is the binomial test of 1/2 among the discordant items; without any, p is 1.

    Args:
        first_only: number of items that only the first arm answers correctly.
        second_only: number of items that only the second arm answers correctly.
    """
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def _tango_score(first_only: int, second_only: int, n: int, difference: float) -> float:
    """Return Tango's (1998, Statistics in Medicine 17:891) score statistic z(δ).

    z(δ) = (b − c − nδ) / √(n(2q + δ − δ²)). Here b and c are `first_only` and `second_only`, and q
    is the maximum-likelihood share of c under the difference δ, the larger root of
    2n·q² + ((2n − b + c)δ − b − c)·q − cδ(1 − δ) = 0.
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
    """Return Tango's (1998) interval of a paired difference of shares: all δ with |z(δ)| ≤ z.

    Args:
        first_only: number of items that only the first arm answers correctly.
        second_only: number of items that only the second arm answers correctly.
        n: number of all items.
        level: confidence level.
    """
    z = float(stats.norm.ppf((1 + level) / 2))

    middle = (first_only - second_only) / n

    def end(bound: float, limit: float) -> float:
        if middle == limit:
            return limit
        # z(δ) decreases from ∞ at δ = −1 to −∞ at δ = 1.
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
    """Compare one run of binary items with another."""
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
    """Compare several seeds whose scores are means, with random items and random seeds."""
    difference = first - second
    mixed = seeds.mixed(difference)
    # As in `_of_resamples`, identical arms are no evidence of equivalence.
    identical = not difference.any()

    def t(bound: float) -> float:
        above = mixed.mean - bound
        if mixed.stderr > 0:
            return above / mixed.stderr
        return math.copysign(math.inf, above) if above else 0.0

    def within(level: float) -> tuple[float, float]:
        at_level = seeds.mixed(difference, level)
        return at_level.low, at_level.high

    return _Evidence(
        value=mixed.mean,
        stderr=mixed.stderr,
        above=lambda bound: 1.0 if identical else float(stats.t.sf(t(bound), mixed.df)),
        below=lambda bound: 1.0 if identical else float(stats.t.cdf(t(bound), mixed.df)),
        within=within,
        p_value=float(2 * stats.t.sf(abs(t(0.0)), mixed.df)),
        test="t, items × seeds",
        interval="t, items × seeds",
    )


def _of_resamples(
    first: Array, second: Array, aggregation: str, resamples: int, seed: int
) -> _Evidence:
    """Compare any arms by the paired bootstrap of their items."""
    one, other = resampling.resampled([first, second], aggregation, resamples, seed)
    drawn = one - other
    scores = [aggregations.by_seed(values, aggregation).mean() for values in (first, second)]

    # If no item differs, no resample does. That says nothing about unseen items, so it is no
    # evidence of equivalence and gives no interval.
    identical = not drawn.any()

    # The sample itself counts as a resample (Davison and Hinkley 1997, section 4.2).
    def above(bound: float) -> float:
        return 1.0 if identical else float((1 + (drawn <= bound).sum()) / (1 + resamples))

    def below(bound: float) -> float:
        return 1.0 if identical else float((1 + (drawn >= bound).sum()) / (1 + resamples))

    def within(level: float) -> tuple[float, float]:
        return (math.nan, math.nan) if identical else resampling.percentiles(drawn, level)

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
        raise InputError(f"arms need the same items; found {len(one)} and {len(other)} items")
    if {one.shape[1], other.shape[1]} - {1, columns}:
        raise InputError(
            f"arms need the same seeds; found {one.shape[1]} and {other.shape[1]} seeds"
        )
    if aggregation != "mean":
        evidence = _of_resamples(one, other, aggregation, resamples, seed)
    elif columns > 1:
        evidence = _of_seeds(one, other)
    elif aggregations.is_binary(one) and aggregations.is_binary(other):
        evidence = _of_counts(one, other)
    else:
        evidence = _of_resamples(one, other, aggregation, resamples, seed)
    return evidence, len(one), columns


def difference(
    first: NDArray,
    second: NDArray,
    aggregation: str = "mean",
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Estimate and test the difference of two arms over the same items, in the same order.

    The method depends on the arms:

    - One run each of binary items: McNemar's exact test and Tango's interval.
    - Several seeds of scores that are means: Student's t with item and seed noise (`seeds.mixed`).
    - Otherwise: the paired bootstrap (Efron and Tibshirani 1993, chapter 13; Koehn 2004 for metrics
      such as F1) with its percentile interval (NaN if no item differs). The p-value is twice the
      smaller share of resamples on one side of zero.

    Args:
        first: (items, seeds) or (items, seeds, 2); see the module's docstring.
        second: the other arm, over the same items.
        aggregation: how items make a score.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        InputError: the arms have different numbers of items or seeds.
    """
    evidence, n, columns = _evidence(first, second, aggregation, resamples, seed)
    low, high = evidence.within(level)
    return Difference(
        value=evidence.value,
        stderr=evidence.stderr,
        low=low,
        high=high,
        p_value=evidence.p_value,
        n=n,
        seeds=columns,
        test=evidence.test,
        interval=evidence.interval,
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
    """Test whether two arms differ by less than `margin`, in the metric's unit.

    Two one-sided tests (Schuirmann 1987): `p_inside` is the larger p-value of "difference ≤
    −margin" and "difference ≥ margin". `p_outside` is twice the smaller p-value of "difference ≤
    margin" and "difference ≥ −margin". Binary items use Tango's score test, other arms the test of
    `difference`, which also describes the arguments.

    Raises:
        InputError: the margin is not positive.
    """
    if not margin > 0:
        raise InputError(f"found an equivalence margin of {margin}, expected more than 0")
    evidence, _, _ = _evidence(first, second, aggregation, resamples, seed)
    return Equivalence(
        margin=margin,
        p_inside=max(evidence.above(-margin), evidence.below(margin)),
        p_outside=min(1.0, 2 * min(evidence.above(margin), evidence.below(-margin))),
    )


def verdict(p_inside: float, p_outside: float, level: float = LEVEL) -> str:
    """Return whether two arms are comparable: "yes", "no", or "not shown" (neither p is small)."""
    if p_inside < 1 - level:
        return "yes"
    return "no" if p_outside < 1 - level else "not shown"


def _share(flipped: Array, level: float) -> tuple[float, float, float]:
    if flipped.shape[1] == 1:
        share = float(flipped.mean())
        return share, *proportion_interval(share, len(flipped), level)
    mixed = seeds.mixed(flipped, level)
    if mixed.stderr == 0:
        return mixed.mean, *proportion_interval(mixed.mean, len(flipped), level)
    return mixed.mean, max(0.0, mixed.low), min(1.0, mixed.high)


def flips(before: NDArray, after: NDArray, level: float = LEVEL) -> Flips:
    """Return the shares of items that became wrong and that became correct.

    The negative-flip rate of Yan et al. (2021, Positive-congruent training, CVPR), over all items.
    Intervals are Wilson's, or those of `seeds.mixed` for several seeds that differ.

    Args:
        before: (items, seeds), 1 for correct and 0 for wrong.
        after: the other arm, over the same items.
        level: confidence level.

    Raises:
        InputError: a value is neither 0 nor 1, or the arms have different numbers of items.
    """
    first, second = aggregations.arm(before, "mean"), aggregations.arm(after, "mean")
    if not (aggregations.is_binary(first) and aggregations.is_binary(second)):
        raise InputError("flips need items that are correct (1) or wrong (0); found another value")
    if len(first) != len(second):
        raise InputError(f"arms need the same items; found {len(first)} and {len(second)} items")
    negative = _share(((first == 1) & (second == 0)).astype(float), level)
    positive = _share(((first == 0) & (second == 1)).astype(float), level)
    return Flips(*negative, *positive, n=len(first))
