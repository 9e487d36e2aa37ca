"""How far raters agree: against pingouin, krippendorff, MixedLM and printed examples, and on raters who drift."""

from __future__ import annotations

import krippendorff
import numpy as np
import pandas as pd
import pingouin
import pytest
import statsmodels.formula.api as smf

from rewards.experts.aggregation import random_effects
from rewards.experts.agreement import agreement, consistency, drift, iccs, krippendorff_alpha
from rewards.experts.rating_rows import Row

NAN = float("nan")
# Shrout & Fleiss (1979, Psychological Bulletin 86, table 2): six targets, four judges, scores out of ten.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
# Krippendorff (2011, Computing Krippendorff's Alpha-Reliability, section C): twelve units, four observers, 1 to 5.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def rows_of(value_IR: np.ndarray) -> list[Row]:
    """A row for each number of a table of items and raters."""
    return [Row(f"i{i:03d}", f"r{r}", float(v)) for (i, r), v in np.ndenumerate(value_IR) if not np.isnan(v)]


def table(
    seed: int, items: int, raters: int, *, missing: float = 0.0, item: float = 0.12, noise: float = 0.12
) -> np.ndarray:
    draw = np.random.default_rng(seed)
    value_IR = (
        0.5 + draw.normal(0, item, (items, 1)) + draw.normal(0, 0.15, raters) + draw.normal(0, noise, (items, raters))
    )
    return np.where(draw.random((items, raters)) < missing, NAN, np.clip(value_IR, 0, 1))


def long(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame(
        {"item": [r.item for r in rows], "rater": [r.rater for r in rows], "y": [r.value for r in rows]}
    )


def test_iccs_of_the_printed_example():
    a1, ak, ck = iccs(rows_of(np.array(SHROUT_FLEISS) / 10))
    assert [round(a1, 2), round(ak, 2), round(ck, 2)] == [0.29, 0.62, 0.91]


@pytest.mark.parametrize(
    "item", [0.15, 0.0]
)  # without differences among items the coefficients come out below zero, too
@pytest.mark.parametrize("items, raters", [(3, 2), (12, 4), (40, 6)])
def test_iccs_of_complete_tables_are_those_of_pingouin(items, raters, item):
    rows = rows_of(table(items + raters, items, raters, item=item))
    oracle = pingouin.intraclass_corr(long(rows), targets="item", raters="rater", ratings="y").set_index("Type")["ICC"]
    assert iccs(rows) == pytest.approx([oracle["ICC(A,1)"], oracle["ICC(A,k)"], oracle["ICC(C,k)"]], abs=1e-9)


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_iccs_of_other_tables_are_those_of_mixedlms_variances():
    rows = rows_of(table(3, 40, 5, missing=0.5))
    crossed = {"item": "0 + C(item)", "rater": "0 + C(rater)"}
    groups = np.ones(len(rows))
    oracle = smf.mixedlm("y ~ 1", long(rows), groups=groups, vc_formula=crossed, re_formula="0").fit(reml=True)
    (item, rater), noise = map(float, oracle.vcomp), float(oracle.scale)
    k = 1 / np.mean(1 / long(rows).groupby("item").size())
    expected = [item / (item + rater + noise), item / (item + (rater + noise) / k), item / (item + noise / k)]
    assert iccs(rows) == pytest.approx(expected, rel=2e-3)


def test_one_missing_rating_changes_the_way_and_hardly_the_number():
    rows = rows_of(table(4, 60, 4))
    assert iccs(rows[1:]) == pytest.approx(iccs(rows), abs=0.01)


def test_alpha_of_the_printed_example():
    assert round(krippendorff_alpha(rows_of(np.array(KRIPPENDORFF).T / 5)), 3) == 0.849


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7])
def test_alpha_is_that_of_krippendorff(missing):
    for seed in range(5):
        value_IR = table(seed, 30, 5, missing=missing)
        oracle = krippendorff.alpha(reliability_data=value_IR.T, level_of_measurement="interval")
        assert krippendorff_alpha(rows_of(value_IR)) == pytest.approx(oracle, abs=1e-12)


def test_coefficients_of_ratings_that_never_differ_are_zero():
    same = np.full((6, 3), 0.7)
    assert iccs(rows_of(same)) == (0, 0, 0) and krippendorff_alpha(rows_of(same)) == 0
    same[0, 0] = NAN
    assert iccs(rows_of(same)) == (0, 0, 0)
    found = agreement(rows_of(same), draws=20)
    assert found is not None and (found.icc_ak.low, found.icc_ak.high) == (0, 0)


def test_what_cannot_be_known_yet_is_said():
    rows = [Row("a", "x", 0.3), Row("a", "y", 0.5), Row("b", "x", 0.4)]
    assert agreement(rows) is None
    with pytest.raises(ValueError, match="needs two items with two raters each, there are 1; wait"):
        iccs(rows)
    with pytest.raises(ValueError, match="needs an item with two ratings, there is none; wait"):
        krippendorff_alpha(rows[1:])


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_panel_in_one_look(missing):
    value_IR = table(5, 40, 4, missing=missing)
    rows = rows_of(value_IR)
    found = agreement(rows, draws=80, seed=3)
    assert found is not None and found.complete == (missing == 0)
    assert [found.icc_a1.value, found.icc_ak.value, found.icc_ck.value] == pytest.approx(iccs(rows))
    assert found.alpha.value == pytest.approx(krippendorff_alpha(rows))
    for interval in (found.icc_a1, found.icc_ak, found.icc_ck, found.alpha):
        assert interval.low < interval.value < interval.high
    assert found == agreement(rows[::-1], draws=80, seed=3) != agreement(rows, draws=80, seed=4)
    rated_I = (~np.isnan(value_IR)).sum(axis=1)
    assert (found.items, found.raters) == ((rated_I >= 2).sum(), 4)
    assert found.k == pytest.approx(1 / np.mean(1 / rated_I[rated_I > 0]))


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_an_interval_is_that_of_tables_whose_items_are_drawn_again(missing):
    value_IR = table(6, 25, 4, missing=missing)
    value_IR = value_IR[~np.isnan(value_IR).all(axis=1)]
    draw, by_hand = np.random.default_rng(0), []
    for _ in range(80):
        rows = rows_of(value_IR[draw.integers(len(value_IR), size=len(value_IR))])
        by_hand.append([*iccs(rows), krippendorff_alpha(rows)])
    found = agreement(rows_of(value_IR), draws=300)
    assert found is not None
    for interval, sampled in zip(
        (found.icc_a1, found.icc_ak, found.icc_ck, found.alpha), np.transpose(by_hand), strict=True
    ):
        assert [interval.low, interval.high] == pytest.approx(np.quantile(sampled, [0.025, 0.975]), abs=0.08)


def test_intervals_hold_the_agreement_that_the_raters_would_reach():
    """Of the panel's own raters on ever more items."""
    draw = np.random.default_rng(7)
    biases, held = draw.normal(0, 0.15, 4), []
    apart = biases.var(ddof=1)
    truth = 0.1**2 / (0.1**2 + apart + 0.1**2)
    for seed in range(60):
        noise = np.random.default_rng(seed)
        value_IR = 0.5 + noise.normal(0, 0.1, (60, 1)) + biases + noise.normal(0, 0.1, (60, 4))
        found = agreement(rows_of(np.clip(value_IR, 0, 1)), draws=200)
        assert found is not None
        held.append(found.icc_a1.low < truth < found.icc_a1.high)
    assert np.mean(held) > 0.85


def test_consistency_by_hand():
    found = consistency([(0.2, 0.4), (0.5, 0.5), (0.9, 0.7), (0.3, 0.6)])
    assert found is not None and found.pairs == 4
    assert found.difference.value == pytest.approx(0.175)
    assert found.difference.low < 0.175 < found.difference.high
    assert found.shift == pytest.approx(0.075)
    assert found.correlation == pytest.approx(np.corrcoef([0.2, 0.5, 0.9, 0.3], [0.4, 0.5, 0.7, 0.6])[0, 1])
    askings = long(rows_of(np.array([[0.2, 0.4], [0.5, 0.5], [0.9, 0.7], [0.3, 0.6]])))
    oracle = pingouin.intraclass_corr(askings, targets="item", raters="rater", ratings="y").set_index("Type")["ICC"]
    assert found.icc == pytest.approx(oracle["ICC(A,1)"])


def test_a_rater_who_shifts_is_correlated_but_not_consistent():
    found = consistency([(at / 10, at / 10 + 0.4) for at in range(6)])
    assert found is not None and found.correlation == pytest.approx(1)
    assert found.icc is not None and found.icc < 0.5 and found.shift == pytest.approx(0.4)


def test_few_or_flat_pairs_have_no_correlation():
    assert consistency([]) is None
    for pairs in ([(0.1, 0.2), (0.3, 0.4)], [(0.5, 0.1), (0.5, 0.2), (0.5, 0.9)]):
        found = consistency(pairs)
        assert found is not None and found.correlation is None and found.icc is None


def told_in_order(seed: int, slopes: dict[str, float], *, items: int = 300, better: float = 0.0) -> list[Row]:
    """Each item by two raters by lot; a rater gives `slopes` more per hundred ratings, items get `better` from first to last."""
    draw = np.random.default_rng(seed)
    given, rows, names = dict.fromkeys(slopes, 0), [], sorted(slopes)
    biases = dict(zip(names, draw.normal(0, 0.08, len(names)), strict=True))
    for at in range(items):
        value = 0.45 + better * (at / items - 0.5) + draw.normal(0, 0.08)
        for name in draw.choice(names, 2, replace=False):
            given[name] += 1
            felt = value + biases[name] + slopes[name] * given[name] / 100 + draw.normal(0, 0.08)
            rows.append(Row(f"i{at:03d}", str(name), float(np.clip(felt, 0, 1))))
    return rows


def test_a_rater_who_grows_milder_is_found_and_shows_in_the_others_by_their_share():
    runs = [told_in_order(seed, {**dict.fromkeys("abcdef", 0.0), "d": 0.06}, items=900) for seed in range(10)]
    found = [drift(rows, random_effects(rows)) for rows in runs]
    slope = {name: np.mean([run[name].value for run in found]) for name in "abcdef"}
    assert slope["d"] == pytest.approx(0.06, abs=0.01)
    assert [slope[name] for name in "abcef"] == pytest.approx([-0.06 / 5] * 5, abs=0.01)  # a fifth of theirs are with d
    assert all(run["d"].low > 0.03 for run in found)


def test_replies_that_get_better_are_no_drift():
    held = []
    for seed in range(40):
        rows = told_in_order(seed, dict.fromkeys("abcd", 0.0), better=0.4)
        held += [slope.low < 0 < slope.high for slope in drift(rows, random_effects(rows)).values()]
    assert 0.9 < np.mean(held) <= 0.99


def test_drift_needs_somebody_to_compare_with():
    alone = [Row(f"i{at}", "x", at / 10) for at in range(10)]
    assert drift(alone, random_effects(alone)) == {}
    met = [*alone, Row("i0", "y", 0.1), Row("i1", "y", 0.2)]
    assert drift(met, random_effects(met)) == {}
    met.append(Row("i2", "y", 0.3))
    assert drift(met, random_effects(met)).keys() == {"x", "y"}
