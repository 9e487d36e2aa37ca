"""What ratings are worth: against MixedLM, against the equations written out, on known truths, and at the edges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from rewards.experts.aggregation import Aggregate, flags, mean, random_effects, standardised
from rewards.experts.rating_rows import Panel, Row
from rewards.experts.variance_components import PRIOR, Moments, Prior, Variances, criterion, fitted

PLAIN = Prior(0, shares=0)
METHODS = (mean, standardised, random_effects)
# DOMAIN section 4: one rater's mean is 1.7 of 6 where another's is 4.0, which is 0.46 of the scale from 0 to 1.
BIASES = (-0.23, -0.08, 0.08, 0.23)


def rated(
    seed: int,
    *,
    items: int = 60,
    biases: Sequence[float] = BIASES,
    item: float = 0.12,
    noise: float = 0.15,
    many: Sequence[int] = (1, 2, 3),
) -> tuple[list[Row], dict[str, float]]:
    """Rows and the true values: every item has some of the raters, by lot."""
    draw = np.random.default_rng(seed)
    truth = {f"i{at:03d}": float(np.clip(0.5 + draw.normal(0, item), 0, 1)) for at in range(items)}
    rows = [
        Row(name, f"r{rater}", float(np.clip(value + biases[rater] + draw.normal(0, noise), 0, 1)))
        for name, value in truth.items()
        for rater in draw.choice(len(biases), draw.choice(many), replace=False)
    ]
    return rows, truth


def values(aggregate: Aggregate) -> np.ndarray:
    return np.array([estimate.value for estimate in aggregate.items.values()])


def stds(aggregate: Aggregate) -> np.ndarray:
    return np.array([estimate.std for estimate in aggregate.items.values()])


def written_out(rows: Sequence[Row], variances: Variances) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, float]:
    """mu, items' values, their standard deviations, raters' biases and the REML criterion by N x N matrices."""
    panel = Panel.of(rows)
    item_NI, rater_NR = np.eye(len(panel.items))[panel.item_N], np.eye(len(panel.raters))[panel.rater_N]
    ones_N, noise_NN = np.ones(len(rows)), variances.noise * np.eye(len(rows))
    all_NN = variances.item * item_NI @ item_NI.T + variances.rater * rater_NR @ rater_NR.T + noise_NN
    inverse_NN = np.linalg.inv(all_NN)
    known = ones_N @ inverse_NN @ ones_N
    mu = float(ones_N @ inverse_NN @ panel.value_N / known)
    left_N = panel.value_N - mu
    with_IN = variances.item * item_NI.T
    shrunk_IN = with_IN @ inverse_NN
    variance_I = variances.item - (shrunk_IN * with_IN).sum(axis=1) + (1 - shrunk_IN @ ones_N) ** 2 / known
    biases_R = variances.rater * rater_NR.T @ inverse_NN @ left_N
    reml = np.linalg.slogdet(all_NN)[1] + np.log(known) + left_N @ inverse_NN @ left_N
    return mu, mu + shrunk_IN @ left_N, np.sqrt(variance_I), biases_R, float(reml)


@pytest.mark.parametrize("many", [(1,), (1, 2, 3), (4,)])
@pytest.mark.parametrize("shares", [(0.014, 0.03, 0.02), (0.02, 0.0, 0.01), (0.0, 0.02, 0.01), (0.3, 0.001, 0.0004)])
def test_eliminating_the_items_solves_the_equations_of_all_ratings(many, shares):
    rows, _ = rated(1, items=30, item=0.05, noise=0.05, many=many)
    rows.append(rows[0])  # the same rater twice is a row like any other
    variances = Variances(*shares)
    found = random_effects(rows, variances=variances)
    mu, value_I, std_I, biases_R, _ = written_out(rows, variances)
    assert found.variances is variances
    assert found.mean == pytest.approx(mu, abs=1e-9)
    assert values(found) == pytest.approx(np.clip(value_I, 0, 1), abs=1e-9)
    assert stds(found) == pytest.approx(std_I, abs=1e-9)
    assert list(found.raters.values()) == pytest.approx(biases_R, abs=1e-9)


@pytest.mark.parametrize("prior", [PLAIN, PRIOR, Prior(5, 0.2, 2)])
@pytest.mark.parametrize("logs", [(0.0, 0.0), (1.0, -2.0), (-3.0, 3.0), (4.0, 4.0)])
def test_the_criterion_has_the_slope_it_says(prior, logs):
    moments = Moments.of(Panel.of(rated(2, items=25)[0]))
    slope = approx_fprime(np.array(logs), lambda at: criterion(at, moments, prior)[0], 1e-6)
    assert criterion(np.array(logs), moments, prior)[1] == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_the_criterion_is_that_of_reml():
    rows, _ = rated(3, items=25)
    moments, found = Moments.of(Panel.of(rows)), []
    for gamma, ratio in ((1.0, 1.0), (0.3, 4.0), (5.0, 0.1)):
        value, _ = criterion(np.log([gamma, ratio]), moments, PLAIN)
        at_one = [written_out(rows, Variances(gamma * n, ratio * n, n))[4] for n in (1.0, 2.0)]
        # -2 log L = (N - 1) log noise + misfit / noise + constant, so two noises give away the misfit, and the best one
        noise = 2 * (at_one[0] - at_one[1] + (len(rows) - 1) * np.log(2)) / (len(rows) - 1)
        found.append(value - written_out(rows, Variances(gamma * noise, ratio * noise, noise))[4])
    assert found == pytest.approx([found[0]] * 3)  # equal up to a constant


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
@pytest.mark.parametrize("seed", range(4))
def test_variances_and_effects_are_those_of_mixedlm(seed):
    rows, _ = rated(seed, items=30, biases=(-0.2, -0.1, 0.0, 0.15, 0.2), noise=0.1, many=(1, 2, 3, 4))
    table = pd.DataFrame(
        {"item": [r.item for r in rows], "rater": [r.rater for r in rows], "y": [r.value for r in rows]}
    )
    crossed = {"item": "0 + C(item)", "rater": "0 + C(rater)"}
    oracle = smf.mixedlm("y ~ 1", table, groups=np.ones(len(rows)), vc_formula=crossed, re_formula="0").fit(reml=True)
    found = random_effects(rows, prior=PLAIN)
    assert found.variances is not None
    theirs = Variances(*map(float, oracle.vcomp), float(oracle.scale))
    ours = [found.variances.item, found.variances.rater, found.variances.noise]
    assert ours == pytest.approx([theirs.item, theirs.rater, theirs.noise], rel=2e-3)
    assert written_out(rows, found.variances)[4] <= written_out(rows, theirs)[4] + 1e-9
    effects = next(iter(oracle.random_effects.values()))
    items = [effects[f"item[C(item)[{name}]]"] for name in found.items]
    assert values(found) - found.mean == pytest.approx(items, abs=1e-3)
    assert list(found.raters.values()) == pytest.approx(
        [effects[f"rater[C(rater)[{name}]]"] for name in found.raters], abs=1e-3
    )
    assert found.mean == pytest.approx(float(oracle.fe_params.iloc[0]), abs=1e-3)


def test_on_a_complete_table_reml_is_the_analysis_of_variance():
    rows, _ = rated(5, items=40, noise=0.05, many=(4,))
    value_IR = pd.DataFrame(rows).pivot(index="item", columns="rater", values="value").to_numpy()
    items, raters = value_IR.shape
    item_I, rater_R = value_IR.mean(axis=1), value_IR.mean(axis=0)
    error = ((value_IR - item_I[:, None] - rater_R + value_IR.mean()) ** 2).sum() / (items - 1) / (raters - 1)
    found = fitted(Moments.of(Panel.of(rows)), PLAIN)
    assert found.noise == pytest.approx(error, rel=1e-4)
    assert found.item == pytest.approx(item_I.var(ddof=1) - error / raters, rel=1e-4)
    assert found.rater == pytest.approx(rater_R.var(ddof=1) - error / items, rel=1e-4)


def test_counting_an_item_twice_is_having_two_such_items():
    rows, _ = rated(6, items=8)
    weight_I = np.array([2.0, 0, 1, 1, 3, 1, 0, 1])
    names = Panel.of(rows).items
    copied = [
        Row(f"{row.item}/{copy}", row.rater, row.value)
        for row in rows
        for copy in range(int(weight_I[names.index(row.item)]))
    ]
    weighted, again = (fitted(m) for m in (Moments.of(Panel.of(rows), weight_I), Moments.of(Panel.of(copied))))
    assert [weighted.item, weighted.rater, weighted.noise] == pytest.approx(
        [again.item, again.rater, again.noise], rel=1e-4
    )


def test_a_start_changes_the_way_not_the_end():
    moments = Moments.of(Panel.of(rated(7)[0]))
    cold, warm = fitted(moments), fitted(moments, start=Variances(0.0, 9.0, 0.001))
    assert [warm.item, warm.rater, warm.noise] == pytest.approx([cold.item, cold.rater, cold.noise], rel=1e-4)


def test_variances_fade_in_from_the_prior_and_end_at_the_truth():
    rows, _ = rated(8, items=2000, biases=np.random.default_rng(0).normal(0, 0.1, 40), item=0.1, noise=0.1)
    found, plain = fitted(Moments.of(Panel.of(rows))), fitted(Moments.of(Panel.of(rows)), PLAIN)
    assert found.item**0.5 == pytest.approx(0.1, rel=0.1)
    assert found.noise**0.5 == pytest.approx(0.1, rel=0.1)
    assert found.rater**0.5 == pytest.approx(0.1, rel=0.4)
    assert [found.item, found.noise] == pytest.approx([plain.item, plain.noise], rel=0.01)
    alone = fitted(Moments.of(Panel.of([Row("i", "r", 0.9)])))
    assert [alone.item, alone.rater, alone.noise] == pytest.approx([PRIOR.std**2 / 3] * 3)


ROWS = st.lists(
    st.builds(Row, st.sampled_from("abcdef"), st.sampled_from("xyz"), st.integers(0, 100).map(lambda n: n / 100)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(rows, order):
    shuffled = rows.copy()
    order.shuffle(shuffled)
    for method in METHODS:
        assert method(shuffled) == method(rows)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS)
def test_any_rows_give_finite_values_on_the_scale(rows):
    for method in METHODS:
        found = method(rows)
        assert found.items.keys() == {row.item for row in rows} and found.raters.keys() == {row.rater for row in rows}
        assert ((values(found) >= 0) & (values(found) <= 1)).all()
        assert (np.isfinite(stds(found)) & (stds(found) > 0)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rater=st.integers(0, 3), more=st.floats(0.01, 0.25))
def test_a_constant_in_one_raters_scores_moves_no_ranking_where_all_rate_all(seed, rater, more):
    draw = np.random.default_rng(seed)
    value_IR = 0.3 + 0.2 * draw.random((8, 4))
    shifted_IR = value_IR + more * (np.arange(4) == rater)
    rankings = [
        np.argsort(
            values(random_effects([Row(f"i{i}", f"r{r}", float(table[i, r])) for i in range(8) for r in range(4)]))
        )
        for table in (value_IR, shifted_IR)
    ]
    assert (rankings[0] == rankings[1]).all()


def test_the_fewer_ratings_the_nearer_to_the_mean_and_the_less_sure():
    many = (1, 2, 4, 8)
    # as many items below the middle as above, by the same raters: nobody is mild
    rows = [
        Row(f"{side}{n}", f"r{r}", {"low": 0.2, "top": 0.8}[side])
        for side in ("low", "top")
        for n in many
        for r in range(n)
    ]
    found = random_effects(rows, variances=Variances(0.02, 0.02, 0.03))
    assert found.mean == pytest.approx(0.5)
    top = [found.items[f"top{n}"] for n in many]
    assert all(few.value < more.value and few.std > more.std for few, more in pairwise(top))
    assert top[0].value > 0.5 and top[-1].value < 0.8


@pytest.mark.parametrize("many, items", [((1, 2, 3), 60), ((1,), 60), ((1, 2), 20)])
def test_with_raters_as_far_apart_as_in_real_data_random_effects_are_clearly_nearest_the_truth(many, items):
    errors = []
    for seed in range(25):
        rows, truth = rated(seed, items=items, many=many)
        truth_I = np.array([truth[name] for name in sorted(truth)])
        errors.append([np.sqrt(np.mean((values(method(rows)) - truth_I) ** 2)) for method in METHODS])
    plain, scaled, modelled = np.array(errors).T
    assert modelled.mean() < 0.65 * min(plain.mean(), scaled.mean())
    assert (modelled < plain).mean() > 0.95 and (modelled < scaled).mean() > 0.95


def test_shrinking_is_not_all_of_it_items_are_better_ordered_too():
    found = []
    for seed in range(25):
        rows, truth = rated(seed)
        truth_I = np.array([truth[name] for name in sorted(truth)])
        found.append([np.corrcoef(values(method(rows)), truth_I)[0, 1] for method in METHODS])
    plain, scaled, modelled = np.array(found).mean(axis=0)
    assert modelled > plain + 0.1 and modelled > scaled


def test_the_truth_lies_within_two_standard_errors_as_often_as_it_should():
    inside = []
    for seed in range(60):
        biases = np.random.default_rng(1000 + seed).normal(0, 0.1, 6)
        rows, truth = rated(seed, items=50, biases=biases, item=0.1, noise=0.1)
        found = random_effects(rows)
        inside += [abs(found.items[name].value - value) < 1.96 * found.items[name].std for name, value in truth.items()]
    assert 0.92 < np.mean(inside) < 0.98


def test_one_rating_is_taken_as_it_is_and_is_not_sure():
    found = random_effects([Row("i", "r", 0.9)])
    assert found.items["i"].value == pytest.approx(0.9)
    assert found.items["i"].std == pytest.approx((2 / 3) ** 0.5 * PRIOR.std)
    assert found.raters == {"r": 0.0}


@pytest.mark.parametrize("rater, kept", [("x", 1 / 2), ("y", 1 / 3)])
def test_two_ratings_give_no_silly_answer(rater, kept):
    """The items get their share of a difference: a half where one rater saw it, a third where two raters may differ."""
    low, high = values(random_effects([Row("a", "x", 0.2), Row("b", rater, 0.8)]))
    assert [low, high] == pytest.approx([0.5 - kept * 0.3, 0.5 + kept * 0.3], abs=1e-6)


def test_ratings_all_equal_are_the_value_of_everything():
    for rows in ([Row(f"i{at // 2}", f"r{at % 3}", 0.7) for at in range(40)], [Row("i", "r", 0.7)] * 40):
        for method in METHODS:
            assert values(method(rows)) == pytest.approx(0.7)


def test_scores_that_are_only_good_or_bad_are_shrunk_not_spoilt():
    found = random_effects([Row(f"i{at}", "r", float(at % 2)) for at in range(50)])
    low, high = sorted(set(values(found).round(6)))
    assert 0.05 < low < 0.4 and high == pytest.approx(1 - low, abs=1e-5)


def test_the_design_is_said_where_it_leaves_something_open():
    apart = [Row(f"{rater}{at}", f"{rater}{twin}", 0.1 * at) for rater in "xyz" for at in range(4) for twin in (1, 2)]
    assert "3 groups" in random_effects(apart).notes[0]
    chain = [Row(f"i{at}", f"r{rater}", 0.1 * at) for at in range(9) for rater in (at, at + 1)]
    assert random_effects(chain).notes == ()
    assert "only rater" in random_effects([Row("a", "x", 0.3), Row("b", "x", 0.5)]).notes[0]


def test_standardising_by_hand():
    rows = [Row("a", "mild", 0.6), Row("b", "mild", 0.8), Row("c", "mild", 1.0)]
    rows += [Row("a", "harsh", 0.0), Row("b", "harsh", 0.1), Row("c", "harsh", 0.2)]
    rows += [Row("a", "flat", 0.9)] * 3 + [Row("c", "rare", 0.4)]
    found = standardised(rows)
    given = np.array([row.value for row in rows])
    up = given.std() * 1.5**0.5  # a rater's second step from the middle is sqrt(3/2) standard deviations
    expected = [((given.mean() - up) * 2 + 3 * given.mean()) / 5, given.mean(), ((given.mean() + up) * 2 + 0.4) / 3]
    assert values(found) == pytest.approx(np.clip(expected, 0, 1))
    assert found.raters["mild"] == pytest.approx(0.8 - given.mean())
    assert sorted(note.split()[0] for note in found.notes) == ["flat", "rare"]


def test_means_by_hand():
    found = mean([Row("a", "x", 0.2), Row("a", "y", 0.6), Row("b", "x", 0.5), Row("b", "y", 0.7), Row("b", "z", 0.9)])
    pooled = (2 * 0.2**2 + 2 * 0.2**2 + PRIOR.std**2) / (3 + 1)
    assert values(found) == pytest.approx([0.4, 0.7])
    assert stds(found) == pytest.approx([(pooled / 2) ** 0.5, (pooled / 3) ** 0.5])


def test_one_raters_flag_is_the_items():
    rows = [
        Row("a", "x", 0.9),
        Row("a", "y", 0.9, ("dosage", "diagnosis")),
        Row("a", "z", 1.0, ("dosage",)),
        Row("b", "x", 0.1),
    ]
    assert flags(rows) == {"a": ("diagnosis", "dosage"), "b": ()}


def test_ten_thousand_ratings_take_well_under_a_second():
    rows, _ = rated(9, items=4000, biases=np.linspace(-0.2, 0.2, 20), many=(1, 2, 3, 4))
    random_effects(rows[:10])  # imports
    start = time.process_time()
    random_effects(rows)
    assert len(rows) > 9000 and time.process_time() - start < 0.5


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_rating_off_the_scale_is_refused(value):
    with pytest.raises(ValueError, match=r"x's of a is .*; rescale it"):
        Row("a", "x", value)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_aggregate_is_said(method):
    with pytest.raises(ValueError, match="there is none"):
        method([])


@pytest.mark.parametrize("shares", [(-1, 0, 1), (0, 0, 0), (0, float("nan"), 1), (float("inf"), 0, 1)])
def test_variances_that_cannot_be_are_refused(shares):
    with pytest.raises(ValueError, match="take them from an Aggregate"):
        Variances(*shares)
