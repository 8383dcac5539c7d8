"""Scores, paired comparisons, recovery and seeds, checked against other packages and by hand."""

import math

import numpy
import pandas
import pytest
import statsmodels.formula.api
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import f1_score, matthews_corrcoef
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_paired

from portllm import statistics
from portllm.errors import InputError
from portllm.statistics import paired

GENERATOR = numpy.random.default_rng(5)
EASE = GENERATOR.random(300)
# Arms that agree on most items: each answers the items that are easy enough for it.
WEAK = (GENERATOR.random(300) < 0.3).astype(float)
GOOD = (EASE + GENERATOR.normal(0, 0.1, 300) < 0.7).astype(float)
BETTER = (EASE + GENERATOR.normal(0, 0.1, 300) < 0.8).astype(float)
GOLD = (GENERATOR.random(300) < 0.4).astype(float)


def answers(right: numpy.ndarray) -> numpy.ndarray:
    """Pairs of gold and predicted class of an arm."""
    return numpy.stack([GOLD, numpy.where(right == 1, GOLD, 1 - GOLD)], axis=1)


def of_counts(both: int, first: int, second: int, neither: int) -> tuple[numpy.ndarray, ...]:
    """Two arms with given numbers of items correct in both, first only, second only, neither."""
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    other = [1] * both + [0] * first + [1] * second + [0] * neither
    return numpy.array(one), numpy.array(other)


def test_accuracy_has_wilsons_interval_and_lm_evals_standard_error() -> None:
    result = statistics.score(GOOD)
    right = int(GOOD.sum())
    reference = stats.binomtest(right, 300).proportion_ci(method="wilson")
    assert (result.value, result.n) == (right / 300, 300)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high))
    assert result.interval == "Wilson"
    assert result.stderr == pytest.approx(numpy.std(GOOD, ddof=1) / math.sqrt(300))


def test_wilson_by_hand() -> None:
    # 59 of 71 with z = 1.96: centre (p + z²/2n) / (1 + z²/n), which is no longer 0.831.
    low, high = statistics.proportion_interval(59 / 71, 71)
    z = 1.959964
    centre = (59 / 71 + z * z / 142) / (1 + z * z / 71)
    assert (low + high) / 2 == pytest.approx(centre, abs=1e-6)
    assert (low, high) == pytest.approx((0.7269, 0.9008), abs=1e-3)
    assert statistics.proportion_interval(0.0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert statistics.proportion_interval(1.0, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("aggregation", "reference"), [("f1", f1_score), ("mcc", matthews_corrcoef)]
)
def test_f1_and_mcc_equal_scikit_learn(aggregation: str, reference) -> None:
    pairs = answers(GOOD)
    result = statistics.score(pairs, aggregation)
    assert result.value == pytest.approx(reference(pairs[:, 0], pairs[:, 1]))
    again = stats.bootstrap(
        (pairs[:, 0], pairs[:, 1]),
        reference,
        paired=True,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=1,
    )
    # Two bootstraps differ by chance, here by a few per cent of a standard error.
    assert result.stderr == pytest.approx(again.standard_error, rel=0.15)
    ends = again.confidence_interval
    assert (result.low, result.high) == pytest.approx(
        (ends.low, ends.high), abs=0.5 * result.stderr
    )


def test_f1_without_positives_is_zero() -> None:
    alike = statistics.score([[0, 0], [0, 0], [0, 0]], "f1")
    assert (alike.value, alike.interval) == (0, "bootstrap")
    assert math.isnan(alike.low)
    assert math.isnan(alike.high)


@pytest.mark.parametrize(("first", "second"), [(GOOD, BETTER), (BETTER, WEAK), (GOOD, GOOD)])
def test_mcnemar_equals_statsmodels(first: numpy.ndarray, second: numpy.ndarray) -> None:
    table = pandas.crosstab(
        pandas.Categorical(first, [1, 0]), pandas.Categorical(second, [1, 0]), dropna=False
    )
    reference = mcnemar(table.to_numpy(), exact=True)
    result = statistics.difference(first, second)
    assert result.test == "McNemar, exact"
    assert result.p_value == pytest.approx(min(1.0, reference.pvalue))


def test_mcnemar_by_hand() -> None:
    # Five items that only the first answers correctly: 2 · 0.5⁵.
    assert statistics.mcnemar(5, 0) == pytest.approx(0.0625)
    assert statistics.mcnemar(0, 0) == 1
    result = statistics.difference(*of_counts(10, 5, 0, 5))
    assert (result.value, result.p_value, result.n) == (0.25, pytest.approx(0.0625), 20)


def brute_force_score(b: int, c: int, n: int, difference: float) -> float:
    """Tango's statistic with the nuisance share found by maximising the likelihood."""

    def unlikely(share: float) -> float:
        probabilities = (share + difference, share, 1 - 2 * share - difference)
        terms = zip((b, c, n - b - c), probabilities, strict=True)
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    result = optimize.minimize_scalar(
        unlikely,
        bounds=(max(0.0, -difference), (1 - difference) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    )
    share = result.x
    variance = (2 * share + difference - difference**2) / n
    return ((b - c) / n - difference) / math.sqrt(variance)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (40, 31, 300), (3, 9, 71), (0, 4, 40)])
def test_tangos_interval_inverts_the_score_test(b: int, c: int, n: int) -> None:
    low, high = statistics.tango_interval(b, c, n)
    z = stats.norm.ppf(0.975)
    assert brute_force_score(b, c, n, low) == pytest.approx(z, abs=1e-3)
    assert brute_force_score(b, c, n, high) == pytest.approx(-z, abs=1e-3)
    assert low < (b - c) / n < high


def test_tangos_interval_by_hand() -> None:
    # Without discordant items z(δ) = −√(nδ / (1 − δ)), so the end is z² / (n + z²).
    z = stats.norm.ppf(0.975)
    end = z * z / (10 + z * z)
    assert statistics.tango_interval(0, 0, 10) == pytest.approx((-end, end))
    assert statistics.tango_interval(10, 0, 10)[1] == 1
    assert statistics.tango_interval(0, 10, 10)[0] == -1
    # Against a difference of zero the score test is McNemar's without correction.
    assert paired._tango_score(12, 2, 50, 0.0) == pytest.approx(10 / math.sqrt(14))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 60))
def test_swapping_the_arms_mirrors_the_interval(b: int, c: int, rest: int) -> None:
    there = statistics.difference(*of_counts(rest, b, c, 1))
    back = statistics.difference(*of_counts(rest, c, b, 1))
    assert (there.value, there.low) == pytest.approx((-back.value, -back.high), abs=1e-9)
    assert there.p_value == back.p_value
    assert -1 <= there.low <= there.value <= there.high <= 1


def test_tangos_interval_covers_the_difference() -> None:
    # 60 items, probabilities 0.15 and 0.05 of a discordant item: the difference is 0.1.
    generator = numpy.random.default_rng(2)
    counts = generator.multinomial(60, [0.15, 0.05, 0.8], 1500)
    ends = [statistics.tango_interval(int(b), int(c), 60) for b, c, _ in counts]
    covered = numpy.mean([low <= 0.1 <= high for low, high in ends])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_the_paired_bootstrap_equals_scipy() -> None:
    one, other = EASE, EASE + GENERATOR.normal(0.02, 0.2, 300)
    result = statistics.difference(one, other)
    assert result.test == "bootstrap"
    reference = stats.bootstrap(
        (one, other),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=1,
    )
    ends = reference.confidence_interval
    assert result.stderr == pytest.approx(reference.standard_error, rel=0.05)
    assert (result.low, result.high) == pytest.approx(
        (ends.low, ends.high), abs=0.1 * result.stderr
    )
    assert result.p_value == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=0.02)


def test_both_ways_of_drawing_give_the_same_distribution() -> None:
    # Tiny distinct offsets make every item its own pattern, which is drawn the other way.
    values = BETTER - WEAK
    distinct = values + numpy.linspace(0, 1e-9, 300)
    few = statistics.difference(values, numpy.zeros(300))
    many = statistics.difference(distinct, numpy.zeros(300))
    assert few.stderr == pytest.approx(many.stderr, rel=0.04)
    assert few.low == pytest.approx(many.low, abs=0.2 * few.stderr)


def test_a_difference_of_f1() -> None:
    good, better = answers(GOOD), answers(BETTER)
    result = statistics.difference(good, better, "f1")
    assert result.value == pytest.approx(f1_score(*good.T) - f1_score(*better.T))
    assert result.low < result.value < result.high < 0
    assert result.p_value < 0.01
    # Equal answers to these items do not prove that the arms are equal.
    alike = statistics.difference(good, good, "f1")
    assert (alike.value, alike.p_value) == (0, 1)
    assert math.isnan(alike.low)
    assert statistics.equivalence(good, good, 0.01, "f1").p_inside == 1
    assert statistics.difference(good, better, "f1") == result


def test_identical_seeds_are_no_evidence_of_equivalence() -> None:
    one = numpy.zeros((40, 2))
    result = statistics.difference(one, one)
    assert (result.value, result.p_value) == (0, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    tested = statistics.equivalence(one, one, 0.02)
    assert statistics.verdict(tested.p_inside, tested.p_outside) == "not shown"
    assert math.isnan(statistics.mixed(one).low)
    flipped = statistics.flips(one, one)
    expected = statistics.proportion_interval(0, 40)
    assert (flipped.negative_low, flipped.negative_high) == pytest.approx(expected)
    # One arm answers all items and the other none, so the difference is certain.
    apart = statistics.equivalence(one + 1, one, 0.02)
    assert statistics.verdict(apart.p_inside, apart.p_outside) == "no"


def test_recovery_of_an_identical_port_still_has_an_interval() -> None:
    zero_shot, tuned = numpy.repeat([0, 1], [400, 100]), numpy.repeat([0, 1], [100, 400])
    result = statistics.recovery(tuned, zero_shot, tuned)
    assert result.value == 1
    # Tango's interval of identical arms is ± 3.84 / (500 + 3.84); the gain is at most 0.6.
    assert 0.98 < result.low < 1 - 0.0076 / 0.6
    assert 1 + 0.0076 / 0.6 < result.high < 1.02


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.1, 0.15, 0.3])
@pytest.mark.parametrize("aggregation", ["mean", "f1"])
def test_equivalence_agrees_with_the_interval_and_the_margin(
    margin: float, aggregation: str
) -> None:
    arms = (GOOD, BETTER) if aggregation == "mean" else (answers(GOOD), answers(BETTER))
    result = statistics.equivalence(*arms, margin, aggregation)
    ninety = statistics.difference(*arms, aggregation, level=0.9)
    assert (result.p_inside < 0.05) == (-margin < ninety.low and ninety.high < margin)
    ninety_five = statistics.difference(*arms, aggregation, level=0.95)
    outside = ninety_five.low > margin or ninety_five.high < -margin
    assert (result.p_outside < 0.05) == outside


def test_verdicts() -> None:
    assert statistics.verdict(0.01, 1.0) == "yes"
    assert statistics.verdict(0.06, 0.5) == "not shown"
    assert statistics.verdict(1.0, 0.01) == "no"
    equal = statistics.equivalence(GOOD, GOOD, 0.05)
    assert statistics.verdict(equal.p_inside, equal.p_outside) == "yes"
    worse = statistics.equivalence(GOOD, WEAK, 0.05)
    assert statistics.verdict(worse.p_inside, worse.p_outside) == "no"
    with pytest.raises(InputError, match="found an equivalence margin of 0, expected more than 0"):
        statistics.equivalence(GOOD, BETTER, 0)


def test_flips_by_hand() -> None:
    before, after = of_counts(10, 3, 5, 2)
    result = statistics.flips(before, after)
    assert (result.negative, result.positive, result.n) == (3 / 20, 5 / 20, 20)
    reference = stats.binomtest(3, 20).proportion_ci(method="wilson")
    assert (result.negative_low, result.negative_high) == pytest.approx(
        (reference.low, reference.high)
    )
    change = statistics.difference(after, before).value
    assert result.positive - result.negative == pytest.approx(change)
    with pytest.raises(InputError, match="flips need items that are correct"):
        statistics.flips(EASE, EASE)


def test_flips_of_several_seeds_are_averaged() -> None:
    runs = numpy.stack([GOOD, BETTER], axis=1)
    result = statistics.flips(WEAK, runs)
    singles = [statistics.flips(WEAK, run) for run in (GOOD, BETTER)]
    assert result.negative == pytest.approx(numpy.mean([one.negative for one in singles]))
    assert 0 <= result.negative_low < result.negative < result.negative_high <= 1


def test_recovery_by_hand() -> None:
    # Un-patched 2 of 10, ported 6, re-fine-tuned 7, a hundred times: 4 of 5.
    zero_shot = numpy.tile([1, 1] + [0] * 8, 100)
    ported = numpy.tile([1] * 6 + [0] * 4, 100)
    tuned = numpy.tile([1] * 7 + [0] * 3, 100)
    result = statistics.recovery(ported, zero_shot, tuned)
    assert (result.value, result.gain, result.n) == (pytest.approx(0.8), pytest.approx(0.5), 1000)
    # The port gains a binomial share of the 500 items that re-fine-tuning gains.
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert (result.low, result.high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=0.01)


def fieller(above: numpy.ndarray, below: numpy.ndarray) -> tuple[float, float]:
    """Fieller's interval of a ratio of means of paired numbers, by its quadratic."""
    n, t = len(above), stats.t.ppf(0.975, len(above) - 1)
    covariance = numpy.cov(above, below) * t * t / n
    a = below.mean() ** 2 - covariance[1, 1]
    b = above.mean() * below.mean() - covariance[0, 1]
    c = above.mean() ** 2 - covariance[0, 0]
    root = math.sqrt(b * b - a * c)
    return (b - root) / a, (b + root) / a


def test_the_interval_of_recovery_is_close_to_fiellers() -> None:
    result = statistics.recovery(GOOD, WEAK, BETTER)
    low, high = fieller(GOOD - WEAK, BETTER - WEAK)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.02)


def test_recovery_is_missing_if_the_gain_is_within_noise() -> None:
    zero_shot, tuned = of_counts(20, 9, 14, 40)
    result = statistics.recovery(tuned, zero_shot, tuned)
    assert result.gain > 0 > result.gain_low
    assert math.isnan(result.value)
    assert math.isnan(result.low)
    # There is no ratio either if re-fine-tuning clearly loses.
    assert math.isnan(statistics.recovery(WEAK, BETTER, WEAK).value)


def test_recovery_of_f1() -> None:
    arms = [answers(right) for right in (GOOD, WEAK, BETTER)]
    scores = [f1_score(*pairs.T) for pairs in arms]
    result = statistics.recovery(*arms, "f1")
    assert result.value == pytest.approx((scores[0] - scores[1]) / (scores[2] - scores[1]))
    assert result.low < result.value < result.high


def crossed(seed_sd: float, items: int = 80, seeds: int = 4) -> numpy.ndarray:
    generator = numpy.random.default_rng(3)
    return (
        0.5
        + generator.normal(0, 0.3, (items, 1))
        + generator.normal(0, seed_sd, (1, seeds))
        + generator.normal(0, 0.2, (items, seeds))
    )


# The gradient at the maximum is not exactly zero.
@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_item_and_seed_variances_equal_those_of_statsmodels() -> None:
    values = crossed(0.15)
    result = statistics.mixed(values)
    rows = pandas.DataFrame(values).melt(ignore_index=False, var_name="seed").reset_index()
    model = statsmodels.formula.api.mixedlm(
        "value ~ 1",
        rows.assign(all=1),
        groups="all",
        vc_formula={"item": "0 + C(index)", "seed": "0 + C(seed)"},
    ).fit(reml=True)
    # For balanced data restricted maximum likelihood is the analysis of variance.
    assert result.item_variance == pytest.approx(model.vcomp[0], rel=1e-3)
    assert result.seed_variance == pytest.approx(model.vcomp[1], rel=1e-3)
    assert result.residual_variance == pytest.approx(model.scale, rel=1e-3)
    assert result.mean == pytest.approx(values.mean())
    assert result.stderr == pytest.approx(float(model.bse["Intercept"]), rel=1e-3)
    parts = (result.item_stderr, result.seed_stderr, result.residual_stderr)
    assert result.stderr == pytest.approx(math.hypot(*parts))


def test_without_seed_noise_it_is_the_paired_t_test() -> None:
    # Every seed has the same mean, so that only the items' means vary.
    first, second = crossed(0.0), crossed(0.0)[::-1]
    first, second = (values - values.mean(axis=0) + 0.5 for values in (first, second))
    second = second + 0.03
    result = statistics.difference(first, second)
    one, other = first.mean(axis=1), second.mean(axis=1)
    reference = stats.ttest_rel(one, other)
    interval = reference.confidence_interval()
    assert result.test == "t, items × seeds"
    assert result.p_value == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    for margin in (0.05, 0.1, 0.2):
        p_value = ttost_paired(one, other, -margin, margin)[0]
        assert statistics.equivalence(first, second, margin).p_inside == pytest.approx(p_value)


def test_with_seed_noise_alone_it_is_the_t_test_over_seeds() -> None:
    scores = numpy.array([0.5, 0.6, 0.55])
    result = statistics.mixed(numpy.tile(scores, (50, 1)))
    reference = stats.ttest_1samp(scores, 0).confidence_interval()
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high))
    assert result.item_variance == 0
    same = statistics.mixed(numpy.full((9, 3), 0.5))
    assert (same.mean, same.stderr) == (0.5, 0)
    assert math.isnan(same.low)


def test_the_interval_over_seeds_covers_the_mean() -> None:
    generator = numpy.random.default_rng(4)
    covered = 0
    for _ in range(1500):
        values = (
            generator.normal(0, 0.4, (60, 1))
            + generator.normal(0, 0.04, (1, 3))
            + generator.normal(0, 0.3, (60, 3))
        )
        result = statistics.mixed(values)
        covered += result.low <= 0 <= result.high
    assert covered / 1500 > 0.93


def test_the_bootstrap_over_seeds_has_the_noise_of_seeds() -> None:
    values = crossed(0.15, items=400)
    zero_shot, tuned = numpy.zeros((400, 1)), numpy.ones((400, 1))
    result = statistics.recovery(values, zero_shot, tuned)
    mixed = statistics.mixed(values)
    assert result.value == pytest.approx(mixed.mean)
    # The bootstrap of four seeds is normal where the interval of `mixed` has a t's tails.
    assert (result.high - result.low) / 3.92 == pytest.approx(mixed.stderr, rel=0.15)


def test_mean_and_deviation_over_seeds() -> None:
    result = statistics.over_seeds(numpy.stack([GOOD, BETTER, WEAK], axis=1))
    scores = [GOOD.mean(), BETTER.mean(), WEAK.mean()]
    assert result.mean == pytest.approx(numpy.mean(scores))
    assert result.sd == pytest.approx(numpy.std(scores, ddof=1))
    assert (result.seeds, result.n) == (3, 300)
    of_f1 = statistics.over_seeds(numpy.stack([answers(GOOD), answers(BETTER)], axis=1), "f1")
    assert of_f1.mean == pytest.approx(
        (f1_score(*answers(GOOD).T) + f1_score(*answers(BETTER).T)) / 2
    )
    assert math.isnan(statistics.over_seeds(GOOD).sd)
    with pytest.raises(InputError, match="seed noise needs two seeds or more; found 1"):
        statistics.mixed(GOOD)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)))
def test_the_order_of_items_does_not_matter(order: list[int]) -> None:
    one, other, third = GOOD[:40], BETTER[:40], WEAK[:40]
    assert statistics.difference(one, other) == statistics.difference(one[order], other[order])
    there = statistics.recovery(one, third, other, resamples=200)
    again = statistics.recovery(one[order], third[order], other[order], resamples=200)
    assert repr(there) == repr(again)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.score([1.0]), "found 1 items, expected two or more"),
        (lambda: statistics.score([1, math.nan]), "found an item whose value is missing"),
        (lambda: statistics.score([0, 1], "f2"), "unknown aggregation 'f2'; known: mean, f1, mcc"),
        (lambda: statistics.score([[0, 2], [1, 1]], "f1"), "found another class"),
        (
            lambda: statistics.score([[[0, 1]]], "mean"),
            "found shape 1 × 1 × 2, expected items × seeds",
        ),
        (lambda: statistics.difference([0, 1], [0, 1, 1]), "the same items; found 2 and 3"),
        (
            lambda: statistics.difference(numpy.ones((5, 3)), numpy.ones((5, 2))),
            "the same seeds; found 3 and 2 seeds",
        ),
        (
            lambda: statistics.recovery([0, 1], [0, 1, 1], [0, 1]),
            "arms need the same items and seeds; found items × seeds: 2 × 1, 3 × 1, 2 × 1",
        ),
        (lambda: statistics.flips([0, 1], [0, 1, 1]), "the same items; found 2 and 3"),
    ],
)
def test_invalid_arrays_are_errors(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def run(name: str, items: tuple[str, ...], version: str = "1.0") -> statistics.Run:
    return statistics.Run(name, version, items, numpy.arange(float(len(items))))


def test_runs_of_the_same_items_are_stacked() -> None:
    stacked = statistics.stacked([run("one", ("a", "b", "c")), run("other", ("a", "b", "c"))])
    assert stacked.tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            run("m/v2/ported", ("a", "x", "c")),
            "m/v2/ported: found 3 items, expected the 3 of m/v2/zero-shot; first difference: "
            "found item x, expected b",
        ),
        (
            run("m/v2/ported", ("a", "b")),
            "found 2 items, expected the 3 of m/v2/zero-shot; first difference: found item none, "
            "expected c",
        ),
        (
            run("m/v2/ported", ("a", "b", "c"), "2.0"),
            "m/v2/ported: found task version 2.0, expected 1.0 as in m/v2/zero-shot",
        ),
    ],
)
def test_runs_of_different_items_or_task_versions_are_errors(
    other: statistics.Run, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        statistics.stacked([run("m/v2/zero-shot", ("a", "b", "c")), other])
