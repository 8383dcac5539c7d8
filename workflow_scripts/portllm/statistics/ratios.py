"""Estimate the share of re-fine-tuning's gain that a port recovers."""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from portllm.statistics import aggregations, paired, resampling
from portllm.statistics.aggregations import Array
from portllm.statistics.estimates import LEVEL, RESAMPLES, SEED


def _of_equal_arms(
    arms: list[Array], aggregation: str, gain: float, level: float
) -> tuple[float, float]:
    if aggregation != "mean" or not all(map(aggregations.is_binary, arms)):
        return math.nan, math.nan
    low, high = paired.tango_interval(0, 0, len(arms[0]), level)
    return 1 + low / gain, 1 + high / gain


@dataclass(frozen=True)
class Recovery:
    """The ratio (ported − zero-shot) / (re-fine-tuned − zero-shot), and its denominator, the gain.

    `value`, `low` and `high` are NaN if the gain is within noise.
    """

    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    n: int
    seeds: int


def recovery(
    ported: NDArray,
    zero_shot: NDArray,
    re_fine_tuned: NDArray,
    aggregation: str = "mean",
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Recovery:
    """Return the recovery ratio with its interval, by a paired bootstrap of all three arms.

    Arms are as in `paired`. The ratio is NaN unless the interval of the gain lies above zero, since
    it means nothing if its denominator may be zero. Then at most (1 − level)/2 of the resamples
    have no gain. They count as −∞ for the lower end and as ∞ for the upper end, so that the
    interval contains every ρ for which ported − zero-shot − ρ · gain may be zero, like Fieller's
    (1954) for normal means. In a percentile interval of plain quotients, a loss divided by a
    negative gain would pass for a good recovery.

    If the port equals re-fine-tuning on every item, every resample gives 1, which says nothing
    about unseen items. The interval is then that of their difference (Tango's for binary items;
    else NaN), divided by the lower end of the gain's interval.
    """
    arms = [aggregations.arm(values, aggregation) for values in (ported, zero_shot, re_fine_tuned)]
    scores = [float(aggregations.by_seed(values, aggregation).mean()) for values in arms]
    drawn = resampling.resampled(arms, aggregation, resamples, seed)
    reached, gains = drawn[0] - drawn[1], drawn[2] - drawn[1]
    gain = scores[2] - scores[1]
    gain_low, gain_high = resampling.percentiles(gains, level)
    value = low = high = math.nan
    if gain_low > 0:
        value = (scores[0] - scores[1]) / gain
        positive = gains > 0
        quotients = numpy.divide(reached, gains, out=numpy.zeros_like(gains), where=positive)
        tail = (1 - level) / 2
        lowest = numpy.where(positive, quotients, -math.inf)
        highest = numpy.where(positive, quotients, math.inf)
        low = float(numpy.quantile(lowest, tail, method="higher"))
        high = float(numpy.quantile(highest, 1 - tail, method="lower"))
        if numpy.array_equal(reached, gains):
            low, high = _of_equal_arms(arms, aggregation, gain_low, level)
    seeds = max(values.shape[1] for values in arms)
    return Recovery(value, low, high, gain, gain_low, gain_high, len(arms[0]), seeds)
