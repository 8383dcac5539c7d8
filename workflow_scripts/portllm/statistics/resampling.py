"""Bootstrap scores over items, and over seeds if there are several."""

from collections.abc import Iterator, Sequence

import numpy
from numpy.typing import NDArray

from portllm.errors import InputError
from portllm.statistics.aggregations import AGGREGATIONS, Array

# Weights held in memory at once, 8 bytes each.
AT_ONCE = 4_000_000


def _weights(
    counts: NDArray[numpy.int64], resamples: int, generator: numpy.random.Generator
) -> Iterator[Array]:
    """Yield how often each pattern (a group of equal items) is drawn, in blocks of resamples."""
    patterns, items = len(counts), int(counts.sum())
    owner = numpy.repeat(numpy.arange(patterns), counts)
    block = max(1, AT_ONCE // patterns)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if 8 * patterns < items:
            yield generator.multinomial(items, counts / items, size)
            continue
        # The same distribution, faster if most items differ.
        drawn = generator.integers(0, items, (size, items))
        drawn = drawn if patterns == items else owner[drawn]
        drawn += numpy.arange(size)[:, None] * patterns
        yield numpy.bincount(drawn.ravel(), minlength=size * patterns).reshape(size, patterns)


def resampled(arms: Sequence[Array], aggregation: str, resamples: int, seed: int) -> list[Array]:
    """Score several arms in bootstrap resamples of the items that they share.

    Items are drawn with replacement, the same for all arms and seeds (Efron and Tibshirani 1993,
    chapter 6). With S > 1 seeds, S − 1 of them are drawn too, the same for all arms, and their
    scores averaged: S − 1 draws give the variance of a mean of S seeds without bias (McCarthy and
    Snowden 1985, The bootstrap and finite population sampling). Resampling both items and seeds is
    Owen's pigeonhole bootstrap (2007, Annals of Applied Statistics 1:386), which is slightly
    conservative.

    Args:
        arms: (items, seeds) or (items, seeds, 2) each; an arm without seeds has one column.
        aggregation: how items make a score.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        (resamples,) scores for each arm.

    Raises:
        InputError: the arms have different numbers of items or seeds.
    """
    items = len(arms[0])
    seeds = max(values.shape[1] for values in arms)
    if any(len(values) != items or values.shape[1] not in (1, seeds) for values in arms):
        shapes = ", ".join(f"{len(values)} × {values.shape[1]}" for values in arms)
        raise InputError(f"arms need the same items and seeds; found items × seeds: {shapes}")
    table = numpy.concatenate([values.reshape(items, -1) for values in arms], axis=1)
    _, first, counts = numpy.unique(table, axis=0, return_index=True, return_counts=True)
    patterns = [values[first] for values in arms]
    generator = numpy.random.default_rng(seed)
    drawn_seeds = numpy.ones((resamples, 1))
    if seeds > 1:
        drawn_seeds = generator.multinomial(seeds - 1, [1 / seeds] * seeds, resamples) / (seeds - 1)
    blocks: list[list[Array]] = [[] for _ in arms]
    for weights in _weights(counts, resamples, generator):
        for values, block in zip(patterns, blocks, strict=True):
            columns = range(values.shape[1])
            scores = [AGGREGATIONS[aggregation](weights, values[:, s]) for s in columns]
            block.append(numpy.stack(scores, axis=1))
    joined = [numpy.concatenate(block) for block in blocks]
    return [
        scores[:, 0] if scores.shape[1] == 1 else (scores * drawn_seeds).sum(axis=1)
        for scores in joined
    ]


def percentiles(values: Array, level: float) -> tuple[float, float]:
    """Return the percentile interval (Efron 1979) at a confidence level."""
    low, high = numpy.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
