"""Summarise several seeds on the same items, and separate item noise from seed noise."""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats

from portllm.errors import InputError
from portllm.statistics import aggregations
from portllm.statistics.estimates import LEVEL


@dataclass(frozen=True)
class Seeds:
    """Mean over seeds and the standard deviation between them (NaN for one seed)."""

    mean: float
    sd: float
    seeds: int
    n: int


def over_seeds(values: NDArray, aggregation: str = "mean") -> Seeds:
    """Return mean and standard deviation (divisor S − 1) of the scores of S seeds.

    Args:
        values: (items, seeds), or (items, seeds, 2) pairs for `f1` and `mcc`.
        aggregation: how items make a score.
    """
    items = aggregations.arm(values, aggregation)
    scores = aggregations.by_seed(items, aggregation)
    sd = float(numpy.std(scores, ddof=1)) if len(scores) > 1 else math.nan
    return Seeds(float(scores.mean()), sd, len(scores), len(items))


@dataclass(frozen=True)
class Mixed:
    """The mean of items × seeds, and the components of its noise.

    More items reduce `item_stderr`, more seeds `seed_stderr`, and either `residual_stderr`.
    `stderr` combines all three; the interval has `df` degrees of freedom. If all values are equal,
    the interval is NaN, because nothing is known about unseen items and seeds.
    """

    mean: float
    item_variance: float
    seed_variance: float
    residual_variance: float
    item_stderr: float
    seed_stderr: float
    residual_stderr: float
    stderr: float
    df: float
    low: float
    high: float
    seeds: int
    n: int


def mixed(values: NDArray, level: float = LEVEL) -> Mixed:
    """Split the noise of (items, seeds) values into item noise and seed noise.

    The model is value = mean + item + seed + residual with crossed random effects, because every
    seed answers the same items. Variances come from the mean squares of the two-way table without
    replication (Searle, Casella and McCulloch 1992, Variance Components, chapter 4; negative ones
    are set to zero), degrees of freedom from Satterthwaite (1946). Values may be binary: only the
    interval of the mean assumes a normal distribution.

    Args:
        values: (items, seeds).
        level: confidence level.

    Raises:
        InputError: fewer than two seeds or two items.
    """
    table = aggregations.arm(values, "mean")
    n, seeds = table.shape
    if seeds < 2:
        raise InputError("seed noise needs two seeds or more; found 1")
    mean = table.mean()
    item_means, seed_means = table.mean(axis=1), table.mean(axis=0)
    residual = table - item_means[:, None] - seed_means + mean
    of_items = seeds * float(((item_means - mean) ** 2).sum()) / (n - 1)
    of_seeds = n * float(((seed_means - mean) ** 2).sum()) / (seeds - 1)
    of_residual = float((residual**2).sum()) / ((n - 1) * (seeds - 1))
    item = max(0.0, (of_items - of_residual) / seeds)
    seed = max(0.0, (of_seeds - of_residual) / n)
    # A mean square whose component is zero is dropped: the other one already contains its noise.
    residual_df = (n - 1) * (seeds - 1)
    parts = [(of_items, n - 1, item > 0), (of_seeds, seeds - 1, seed > 0)]
    kept = [(square, df) for square, df, positive in parts if positive]
    if len(kept) != 1:
        kept.append((-of_residual if kept else of_residual, residual_df))
    total = sum(square for square, _ in kept)
    spread = sum(square**2 / df for square, df in kept)
    df = total**2 / spread if spread > 0 else float(n - 1)
    stderr = math.sqrt(total / (n * seeds))
    margin = float(stats.t.ppf((1 + level) / 2, df)) * stderr if stderr > 0 else math.nan
    return Mixed(
        mean=float(mean),
        item_variance=item,
        seed_variance=seed,
        residual_variance=of_residual,
        item_stderr=math.sqrt(item / n),
        seed_stderr=math.sqrt(seed / seeds),
        residual_stderr=math.sqrt(of_residual / (n * seeds)),
        stderr=stderr,
        df=df,
        low=float(mean) - margin,
        high=float(mean) + margin,
        seeds=seeds,
        n=n,
    )
