"""Intervals cover what they promise, p-values are those of the textbooks, and arms are resampled alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from sacrebleu import corpus_bleu
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests

from eval.comparison import Resamples, compare, difference, holm, interval, mcnemar
from eval.figures import Floats, Ledger, Measured
from eval.metrics import Instruments, MetricsConfig, Pair, measure
from eval.variety import distinct, shared
from rewards.config import CrisisConfig, RewardsConfig

RULES = Instruments(MetricsConfig(rewards=RewardsConfig(crisis=CrisisConfig(classifier=False))))
COLLECTIVE = ("distinct_1", "distinct_2", "self_bleu", "duplicate_rate", "opening_rate")
NAMES = ("rouge_l", "bleu", "template_rate", "mean_words", *COLLECTIVE)
WORDS = (
    "you",
    "are",
    "not",
    "alone",
    "what",
    "has",
    "that",
    "been",
    "like",
    "for",
    "so",
    "long",
    "and",
    "how",
    "do",
    "feel",
)


def ids(units: int) -> list[str]:
    return [f"p{i:03d}" for i in range(units)]


def mean_of(values: Floats, *, rate: bool = False) -> Measured:
    return Ledger(ids(len(values))).mean("m", values, rate=rate)


def arm(seed: int, units: int = 24, samples: int = 1, spread: int = len(WORDS)) -> list[Pair]:
    """Replies and references of a few common words; one reply in four is a stock phrase."""
    draw = np.random.default_rng([seed, 1])
    references = [say(np.random.default_rng([7, i]), len(WORDS)) for i in range(units)]
    replies = [[say(draw, spread) for _ in range(samples)] for _ in range(units)]
    return [Pair(f"p{i:03d}", "", (), reply, references[i]) for i in range(units) for reply in replies[i]]


def say(draw: np.random.Generator, known: int) -> str:
    if draw.random() < 0.25:
        return "you are not alone"
    return " ".join(draw.choice(WORDS[:known], size=draw.integers(2, 9)))


def covered(make: Callable[[np.random.Generator], Measured], truth: float, *, studies: int, draws: int = 200) -> float:
    """The share of simulated studies whose interval holds the truth."""
    draw = np.random.default_rng(11)
    found = [make(draw) for _ in range(studies)]
    same = Resamples.of({"m": found[0]}, draws=draws)
    return float(np.mean([(held := interval(m, same)).low <= truth <= held.high for m in found]))


def test_the_interval_of_a_mean_and_of_a_rate_covers() -> None:
    """Of 400 studies of 60 prompts about 95 % (binomial error 1.1 points; percentiles of skewed data fall a little short)."""
    assert 0.91 <= covered(lambda d: mean_of(d.exponential(size=60)), 1.0, studies=400) <= 0.98
    assert 0.91 <= covered(lambda d: mean_of(d.normal(2, 3, 60)), 2.0, studies=400) <= 0.98
    assert 0.90 <= covered(lambda d: mean_of(d.random(60) < 0.3, rate=True), 0.3, studies=400) <= 0.98


def test_the_interval_knows_that_replies_to_one_prompt_are_alike() -> None:
    """Four replies to each of 40 prompts, which differ: resampling replies would hold the truth in two thirds of studies."""
    ledger = {
        by: Ledger([f"{i:03d}{f'/{k}' if by == 'reply' else ''}" for i in range(40) for k in range(4)])
        for by in ("prompt", "reply")
    }

    def study(by: str) -> Callable[[np.random.Generator], Measured]:
        return lambda d: ledger[by].mean("m", (d.normal(size=(40, 1)) + 0.3 * d.normal(size=(40, 4))).ravel())

    assert covered(study("prompt"), 0.0, studies=300) >= 0.90 > 0.80 > covered(study("reply"), 0.0, studies=300)


def test_the_interval_of_variety_covers_where_the_bootstrap_never_does() -> None:
    """distinct-1 and the duplicate rate of 60 replies drawn from a long tail."""
    tail = 1 / np.arange(1, 301)
    tail /= tail.sum()
    ledger = Ledger(ids(60))

    def words(d: np.random.Generator) -> Measured:
        return ledger.collective("m", np.zeros(60), d.choice(300, size=(60, 8), p=tail).tolist(), distinct(1))

    def texts(d: np.random.Generator) -> Measured:
        return ledger.collective("m", np.zeros(60), d.choice(300, size=60, p=tail).tolist(), shared)

    expected_words = float((1 - (1 - tail) ** 480).sum() / 480)
    expected_copies = float((tail * (1 - (1 - tail) ** 59)).sum())
    assert covered(words, expected_words, studies=150, draws=120) >= 0.90
    assert covered(texts, expected_copies, studies=150, draws=120) >= 0.90
    d = np.random.default_rng(0)
    sample = d.choice(300, size=60, p=tail)
    naive = [len(np.unique(sample[d.integers(60, size=60)], return_counts=True)[0]) / 60 for _ in range(200)]
    assert max(naive) < len(np.unique(sample)) / 60  # not one bootstrap sample is as varied as the sample itself


def test_both_ways_to_resample_agree_where_both_may_be_used() -> None:
    """A mean, counted as a sum and as a figure of a set: the same figure, and spreads within a tenth of the standard error."""
    values = np.random.default_rng(4).random(50)
    summed = mean_of(values)
    as_set = Ledger(ids(50)).collective(
        "m", values, values.tolist(), lambda v: lambda mask: mask @ np.array(v) / mask.sum(axis=1)
    )
    same = Resamples(ids(50), draws=4000)
    error = values.std() / math.sqrt(50)
    assert summed.value == pytest.approx(as_set.value) == pytest.approx(same.spread(as_set).mean())
    assert same.spread(summed).std() == pytest.approx(error, rel=0.1)
    assert same.spread(as_set).std() == pytest.approx(error, rel=0.1)


def test_corpus_bleu_of_a_resample_is_sacrebleus_of_the_resampled_replies() -> None:
    """Counts are summed again, draw by draw; the mean of sentence scores is another number."""
    pairs = arm(3)
    found = measure(["bleu"], pairs, RULES)["bleu"]
    same = Resamples.of({"bleu": found}, draws=100)
    figures_B = found.figure.of(same.bootstrap_BU.astype(float))
    for counts_U, ours in list(zip(same.bootstrap_BU, figures_B, strict=True))[:15]:
        drawn = [pair for pair, count in zip(pairs, counts_U, strict=True) for _ in range(count)]
        theirs = corpus_bleu([p.reply for p in drawn], [[p.reference for p in drawn]]).score / 100
        assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", COLLECTIVE)
def test_a_subsample_is_measured_as_if_it_were_all(name: str) -> None:
    """Variety of the kept prompts' replies, recomputed, is what measuring them alone gives."""
    pairs = arm(4, samples=2)
    found = measure([name], pairs, RULES)[name]
    same = Resamples.of({name: found}, draws=100)
    figures_B = found.figure.of(same.subsample_BU.astype(float))
    assert (same.subsample_BU.sum(axis=1) == same.kept).all() and same.kept == 16
    for kept_U, ours in list(zip(same.subsample_BU, figures_B, strict=True))[:10]:
        names = set(np.array(found.units)[kept_U])
        assert ours == pytest.approx(measure([name], [p for p in pairs if p.prompt_id in names], RULES)[name].value)


def test_an_arm_does_not_differ_from_itself() -> None:
    """0 [0, 0], p = 1, in every kind of metric."""
    one, other = measure(NAMES, arm(1), RULES), measure(NAMES, arm(1), RULES)
    for name in NAMES:
        found = difference(one[name], other[name], Resamples.of(one, draws=100))
        assert (found.interval.value, found.p) == (0, 1)
        assert (found.interval.low, found.interval.high) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_difference_is_paired_signed_and_repeatable(name: str) -> None:
    """B - A is A - B with its sign turned; the same seed gives the same; the order of the pairs does not matter."""
    one, other = (
        measure([name], arm(1, samples=2), RULES)[name],
        measure([name], arm(2, samples=2, spread=5), RULES)[name],
    )
    same = Resamples(one.units, draws=200, seed=5)
    there, back = difference(one, other, same), difference(other, one, same)
    assert there.interval.value == pytest.approx(-back.interval.value)
    assert (there.interval.low, there.p) == (pytest.approx(-back.interval.high), pytest.approx(back.p, abs=0.01))
    again = measure([name], arm(1, samples=2)[::-1], RULES)[name]
    mixed = difference(again, other, Resamples(one.units, draws=200, seed=5))
    assert mixed.interval.low == pytest.approx(there.interval.low) and mixed.p == there.p
    assert there.interval.low <= there.interval.value <= there.interval.high
    assert difference(one, other, Resamples(one.units, draws=200, seed=6)).interval.low != there.interval.low


def test_pairing_takes_the_prompts_out() -> None:
    """Arms that share their prompts' difficulty differ surely, though their own intervals overlap."""
    draw = np.random.default_rng(0)
    hard = draw.normal(0, 5, 80)
    one, other = mean_of(hard + draw.normal(0.4, 0.5, 80)), mean_of(hard + draw.normal(0, 0.5, 80))
    same = Resamples(one.units, draws=1000)
    found = difference(one, other, same)
    assert found.interval.low > 0 and found.p < 0.01 and found.test == "paired permutation"
    assert interval(one, same).low < interval(other, same).high
    assert float(found.interval.value) == pytest.approx(one.value - other.value)


def test_the_permutation_test_is_scipys_and_keeps_its_level() -> None:
    """The p-value of a mean is scipy's up to draws; without a difference it is below .05 in one study of twenty."""
    draw = np.random.default_rng(1)
    one, other = draw.normal(0.5, 1, 12), draw.normal(0, 1, 12)
    theirs = permutation_test(
        (one, other), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    ours = difference(mean_of(one), mean_of(other), Resamples(ids(12), draws=4000))
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.03)
    same = Resamples(ids(30), draws=200)
    low = [difference(mean_of(draw.normal(size=30)), mean_of(draw.normal(size=30)), same).p <= 0.05 for _ in range(200)]
    assert 0.02 <= np.mean(low) <= 0.09


def test_variety_differs_when_it_does() -> None:
    """An arm of five words against one of sixteen: found in every figure of variety; against its like: not."""
    poor, rich, like = (measure(COLLECTIVE, arm(s, units=40, spread=k), RULES) for s, k in ((1, 4), (2, 16), (3, 16)))
    same = Resamples.of(poor, draws=300)
    for name in ("distinct_1", "distinct_2", "self_bleu"):
        found = difference(poor[name], rich[name], same)
        assert found.p < 0.01 and (found.interval.high < 0 or found.interval.low > 0)
        assert difference(like[name], rich[name], same).p > 0.05


def test_rates_are_compared_by_mcnemars_exact_test() -> None:
    """statsmodels' p-value; by hand, 6 to 1 of 7 is 2 (1 + 7) / 128."""
    one, other = np.array([1] * 6 + [0] + [1] * 5, float), np.array([0] * 6 + [1] + [1] * 5, float)
    assert mcnemar(one, other) == pytest.approx(16 / 128)
    found = difference(mean_of(one, rate=True), mean_of(other, rate=True), Resamples(ids(12), draws=100))
    assert (found.p, found.test) == (pytest.approx(16 / 128), "McNemar exact")
    draw = np.random.default_rng(2)
    for _ in range(20):
        one, other = (draw.random((2, 30)) < [[0.7], [0.4]]).astype(float)
        table = [[int(((one == a) & (other == b)).sum()) for b in (1, 0)] for a in (1, 0)]
        assert mcnemar(one, other) == pytest.approx(their_mcnemar(table, exact=True).pvalue)
    assert mcnemar(one, one) == 1


def test_a_rate_of_nothing_is_not_certain() -> None:
    """0 of 100 is [0, .036] by Clopper and Pearson; of two such arms the difference may be either way."""
    none, all_ = mean_of(np.zeros(100), rate=True), mean_of(np.ones(100), rate=True)
    same = Resamples(ids(100), draws=100)
    bound = 1 - 0.025 ** (1 / 100)
    assert bound == pytest.approx(0.0362, abs=1e-4)
    assert (interval(none, same).low, interval(none, same).high) == (0, pytest.approx(bound))
    assert (interval(all_, same).low, interval(all_, same).high) == (pytest.approx(1 - bound), 1)
    found = difference(none, none, same)
    assert (found.interval.low, found.interval.high, found.p) == (pytest.approx(-bound), pytest.approx(bound), 1)


def test_a_metric_that_says_nothing_of_any_reply_is_nan_and_not_counted() -> None:
    """Its figure, interval and p-value; other comparisons are corrected as if it were not there."""
    nothing = Ledger(ids(10)).mean("tier/passive/gated", np.full(10, math.nan), rate=True)
    some = {"m": mean_of(np.arange(10.0)), "tier/passive/gated": nothing}
    other = {"m": mean_of(np.arange(10.0) + np.tile([0.0, 0.3], 5)), "tier/passive/gated": nothing}
    assert math.isnan(interval(nothing, Resamples(ids(10), draws=100)).high)
    one, two = compare({"a": some, "b": other}, against="a", draws=200)
    assert one.p_holm == one.p and math.isnan(two.p_holm) and two.test == "none" and not two.significant


def test_values_that_some_replies_lack_do_not_weigh() -> None:
    """The mean is over those that have one, in every resample."""
    values = np.array([1.0, math.nan, 3.0, math.nan])
    found = mean_of(values)
    assert (found.value, found.count) == (2.0, 2)
    assert found.figure.of(np.array([[2.0, 1, 1, 0], [0, 2, 0, 2]])).tolist() == [
        pytest.approx(5 / 3),
        pytest.approx(math.nan, nan_ok=True),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_holm_is_statsmodels(seed: int) -> None:
    """With ties, 0 and 1; and with a comparison that could not be made, which changes nothing."""
    draw = np.random.default_rng(seed)
    p_values = (draw.integers(0, 21, size=draw.integers(1, 13)) / 20).tolist() + draw.random(3).tolist()
    theirs = multipletests(p_values, method="holm")[1].tolist()
    assert holm(p_values) == pytest.approx(theirs)
    with_nan = holm([math.nan, *p_values])
    assert math.isnan(with_nan[0]) and with_nan[1:] == pytest.approx(theirs)


def test_a_table_is_corrected_as_one() -> None:
    """Every other arm, every shared metric, in order; the correction is over all of them."""
    arms = {
        "base": measure(NAMES, arm(1), RULES),
        "sft": measure(NAMES, arm(2), RULES),
        "ppo": measure(NAMES[:2], arm(3), RULES),
    }
    found = compare(arms, against="base", draws=200, seed=3)
    assert [(one.metric, one.first, one.second) for one in found] == [
        *((n, "sft", "base") for n in NAMES),
        *((n, "ppo", "base") for n in NAMES[:2]),
    ]
    assert [one.p_holm for one in found] == holm([one.p for one in found]) and all(one.p_holm >= one.p for one in found)
    assert found == compare(arms, against="base", draws=200, seed=3)
    assert str(found[0]).startswith("rouge_l: sft - base = ") and found[0].units == 24


def test_what_cannot_be_compared_is_refused() -> None:
    """Other prompts, one prompt, another metric, an unknown arm, too few draws, what is no p-value."""
    one, fewer = (
        measure(["mean_words", "bleu"], arm(1), RULES),
        measure(["mean_words", "bleu"], arm(1, units=23), RULES),
    )
    for wrong, says in (
        (
            lambda: compare({"a": one, "b": fewer}, against="a"),
            r"same prompts in every arm, 1 are in one only, the first 'p023'",
        ),
        (lambda: compare({"a": one}, against="sft"), r"against must be an arm among a, got 'sft'"),
        (lambda: Resamples(["p"]), r"two units at least, got 1: add prompts, or measure with by = 'reply'"),
        (lambda: Resamples(ids(9), draws=10), r"draws must be >= 100, got 10"),
        (
            lambda: difference(one["bleu"], one["mean_words"], Resamples.of(one)),
            r"must be of one metric, got bleu and mean_words",
        ),
        (lambda: holm([0.1, 1.2]), r"p-values must lie in \[0, 1\], got 1.2"),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()
