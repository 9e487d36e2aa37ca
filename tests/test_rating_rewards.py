"""What a reply is paid when the policy learns: a step's mean is what the raters said of it, only differences within are shrunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.experts import audit
from rewards.experts.fixing import Group, groups
from rewards.experts.rating_rows import Row
from rewards.experts.reward_rules import RULES, random_effects
from rewards.experts.stepwise import stepwise
from rewards.experts.types import Kind, Rating
from tests.test_rating_store import PLAIN, Desk

STEPS, REPLIES = 50, 16
Draw = Callable[[np.random.Generator, int], list[tuple[str, float]]]


def course(
    raters: Draw, *, top: float = 0.9, noise: float = 0.06, spread: float = 0.05, seed: int = 0
) -> tuple[list[Rating], dict[str, Group], np.ndarray]:
    """Ratings of a run whose replies' true quality rises from .2 to `top`, and the truth of each step's replies."""
    rng = np.random.default_rng(seed)
    truth = np.linspace(0.2, top, STEPS)[:, None] + rng.normal(0, spread, (STEPS, REPLIES))
    ratings, of = [], {}
    for step, at in np.ndindex(truth.shape):
        item = f"{step}/{at}"
        of[item] = Group("run", step)
        for rater, bias in raters(rng, step):
            said = float(np.clip(truth[step, at] + bias + rng.normal(0, noise), 0, 1))
            ratings.append(Rating(f"{item}/{rater}", item, rater, {}, said))
    return ratings, of, truth


def means(values: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """What each step was paid on average."""
    return np.array([[values[f"{step}/{at}"][0] for at in range(REPLIES)] for step in range(STEPS)]).mean(axis=1)


def one(rng: np.random.Generator, step: int) -> list[tuple[str, float]]:
    return [("anna", 0.0)]


def drawn(rng: np.random.Generator, step: int) -> list[tuple[str, float]]:
    return [(("anna", -0.2), ("ben", 0.2))[rng.integers(2)]]


def relieved(rng: np.random.Generator, step: int) -> list[tuple[str, float]]:
    return [("anna", 0.0) if step < STEPS // 2 else ("ben", 0.0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("raters, top", [(one, 0.9), (relieved, 0.9), (drawn, 0.8)])
def test_improvement_is_paid_in_full(raters: Draw, top: float, seed: int) -> None:
    """One rater; a rater who takes over half way; two with biases of -.2 and +.2, dealt replies at random (to .8, above
    which the generous one would say more than 1): with one rating a reply, the mean of the first and of the last five steps
    is within .03 of the truth, and every step's within five standard errors."""
    ratings, of, truth = course(raters, top=top, seed=seed)
    gap = means(random_effects(ratings, of).items) - truth.mean(axis=1)
    assert abs(gap[:5].mean()) < 0.03 and abs(gap[-5:].mean()) < 0.03
    assert np.abs(gap).max() < 5 * 0.06 / np.sqrt(REPLIES)


def test_raters_are_known_by_the_replies_of_one_step() -> None:
    """Their effects come out as they are however steep the run rises; who never met in a step is not compared."""
    rows, of, _ = _rows(*course(drawn, top=0.8))
    found = stepwise(rows, of)
    assert found.raters == pytest.approx({"anna": -0.2, "ben": 0.2}, abs=0.02)
    assert sum(found.raters.values()) == pytest.approx(0, abs=1e-9)
    rows, of, _ = _rows(*course(relieved))
    assert max(map(abs, stepwise(rows, of).raters.values())) < 1e-9


def test_differences_within_a_step_are_shrunk_by_what_chance_explains() -> None:
    """Under heavy noise values differ less than ratings, and lie nearer to the truth; the order stays."""

    def two(rng: np.random.Generator, step: int) -> list[tuple[str, float]]:
        return [("anna", 0.0), ("ben", 0.0)]

    ratings, of, truth = course(two, top=0.6, noise=0.15)
    paid = random_effects(ratings, of).items
    values = np.array([[paid[f"{step}/{at}"][0] for at in range(REPLIES)] for step in range(2)])
    given: dict[str, list[float]] = {}
    for rating in ratings:
        given.setdefault(rating.item, []).append(rating.overall)
    plain = np.array([[np.mean(given[f"{step}/{at}"]) for at in range(REPLIES)] for step in range(2)])
    assert (values.var(axis=1) < 0.5 * plain.var(axis=1)).all()
    assert np.square(values - truth[:2]).mean() < 0.5 * np.square(plain - truth[:2]).mean()
    assert (values.argsort(axis=1) == plain.argsort(axis=1)).mean() > 0.8


def test_the_equation_holds() -> None:
    """y, m, lambda, value and std as documented, from the variances and effects that are told."""
    rng = np.random.default_rng(1)
    rows = [
        Row(f"i{at}", rater, float(rng.uniform(0.3, 0.7)))
        for at in range(12)
        for rater in rng.choice(["a", "b", "c"], rng.integers(1, 4), replace=False)
    ]
    of = {f"i{at}": at // 5 for at in range(12)}
    found = stepwise(rows, of)
    own = {
        item: np.mean([row.value - found.raters[row.rater] for row in rows if row.item == item]) for item in found.items
    }
    many = {item: sum(row.item == item for row in rows) for item in own}
    for item, (value, std) in found.items.items():
        mean = np.mean([y for other, y in own.items() if of[other] == of[item]])
        kept = found.variances.item / (found.variances.item + found.variances.noise / many[item])
        assert value == pytest.approx(mean + kept * (own[item] - mean), abs=1e-9)
        assert std == pytest.approx(np.sqrt((1 - kept) * found.variances.item), abs=1e-9)
    assert sum(found.raters.values()) == pytest.approx(0, abs=1e-9)
    assert stepwise(rows[::-1], of).items == found.items


def test_an_item_alone_in_its_group_is_paid_what_its_raters_said() -> None:
    """Nothing to shrink to: its ratings less the raters' effects; values stay within [0, 1]."""
    rows = [Row(f"i{at}", "a", 0.2) for at in range(8)] + [Row(f"i{at}", "b", 0.6) for at in range(8)]
    rows += [Row("alone", "a", 0.5), Row("high", "a", 1.0)]
    of: dict[str, Any] = {f"i{at}": 0 for at in range(8)} | {"alone": 1, "high": 2}
    found = stepwise(rows, of)
    assert found.items["alone"].value == pytest.approx(0.5 - found.raters["a"])
    assert found.raters["a"] == pytest.approx(-0.2, abs=0.03) and found.items["high"].value == 1.0
    (only,) = stepwise([Row("i", "a", 0.7)], {"i": 0}).items.values()
    assert only.value == pytest.approx(0.7) and 0 < only.std < 0.3


def test_ratings_without_any_difference_are_values() -> None:
    """Nobody differs: no warning, no division by 0."""
    rows = [Row(f"i{at}", rater, 0.5) for at in range(4) for rater in "ab"]
    with np.errstate(all="raise"):
        found = stepwise(rows, {f"i{at}": at // 2 for at in range(4)})
    assert {value for value, _ in found.items.values()} == {0.5}


@pytest.mark.parametrize(
    "raters, words",
    [(one, ["only rater"]), (drawn, ["2 sets that share no item"]), (relieved, ["share no item", "share no step"])],
)
def test_notes_say_what_the_design_leaves_open(raters: Draw, words: list[str]) -> None:
    """One rater; raters without a common item; raters without a common step."""
    ratings, of, _ = course(raters, top=0.8)
    notes = random_effects(ratings, of).notes
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))


def test_the_likelihood_is_that_of_the_model() -> None:
    """The criterion's variances are the best of the restricted likelihood written out in full, matrices and all."""
    rng = np.random.default_rng(2)
    effects = dict(zip("abcd", rng.normal(0, 0.12, 4), strict=True))
    rows, of = [], {}
    for at in range(40):
        of[f"i{at:02}"] = at // 10
        quality = 0.35 + 0.1 * (at // 10) + rng.normal(0, 0.1)
        for rater in rng.choice(list(effects), rng.integers(1, 4), replace=False):
            rows.append(Row(f"i{at:02}", rater, float(np.clip(quality + effects[rater] + rng.normal(0, 0.08), 0, 1))))
    from scipy.optimize import minimize

    from rewards.experts.variance_components import PRIOR

    value_N = np.array([row.value for row in rows])
    items, panel = sorted(of), sorted(effects)
    item_NI = np.array([[row.item == item for item in items] for row in rows], float)
    rater_NR = np.array([[row.rater == rater for rater in panel] for row in rows], float)
    group_NG = np.array([[of[row.item] == group for group in range(4)] for row in rows], float)

    def cost(logs: np.ndarray) -> float:
        item, rater, noise = np.exp(logs)
        cover_NN = item * item_NI @ item_NI.T + rater * rater_NR @ rater_NR.T + noise * np.eye(len(rows))
        known_GG = group_NG.T @ np.linalg.solve(cover_NN, group_NG)
        mean_G = np.linalg.solve(known_GG, group_NG.T @ np.linalg.solve(cover_NN, value_N))
        rest_N = value_N - group_NG @ mean_G
        total = item + rater + noise
        prior = PRIOR.ratings * (np.log(total) + PRIOR.std**2 / total)
        shares = 2 * PRIOR.shares * (logs.sum() - 3 * np.log(total))
        fit = np.linalg.slogdet(cover_NN)[1] + np.linalg.slogdet(known_GG)[1]
        return float(fit + rest_N @ np.linalg.solve(cover_NN, rest_N) + prior - shares)

    best = np.exp(minimize(cost, np.log([0.01, 0.01, 0.01]), method="Nelder-Mead", options={"xatol": 1e-6}).x)
    found = stepwise(rows, of).variances
    assert (found.item, found.rater, found.noise) == pytest.approx(tuple(best), rel=2e-3)


# From the service's tables


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, PLAIN, RULES["random_effects"])
    made.invite("anna", "ben")
    yield made
    made.store.close()


def test_groups_are_told_by_origin_else_by_key(desk: Desk) -> None:
    """Run and step each; what neither tells is unknown, and such items are one group."""
    ids = desk.add("both", key="key/7/p", origin={"run": "origin", "step": 3})
    ids += desk.add("key", key="key/7/p") + desk.add("run", key="key/7/p", origin={"run": "origin"})
    ids += desk.add("words", key="free words", origin={"step": "3"}) + desk.add("no", key="free words", wanted=2)
    for _ in ids:
        desk.rate("anna")
    with desk.store.database.read() as db:
        found = groups(db)
    assert [found[item] for item in ids] == [
        ("origin", 3), ("key", 7), ("origin", 7), (None, None), (None, None),
    ]  # fmt: skip


def test_a_later_step_is_paid_by_its_own_ratings(desk: Desk) -> None:
    """A step of bad replies does not pull the next one down; the chain says what the numbers rest on."""
    early = desk.add(*(f"early {at}" for at in range(6)), origin={"run": "r", "step": 0})
    late = desk.add(*(f"late {at}" for at in range(6)), origin={"run": "r", "step": 1})
    for overall in (0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.8, 0.9, 1.0, 0.8, 0.9, 1.0):
        desk.rate("anna", overall)
    paid = desk.store.rewards("r", 1, late, 1)[0]
    values = [paid[item]["value"] for item in late]
    assert np.mean(values) == pytest.approx(0.9) and 0.8 < min(values) < max(values) < 1.0
    assert np.mean([reward["value"] for reward in desk.store.rewards("r", 0, early, 1)[0].values()]) == pytest.approx(
        0.2
    )
    with desk.store.database.read() as db:
        bodies = [row.content for row in audit.rows(db) if row.kind == Kind.REWARD]
    assert len(bodies) == 12
    for body in bodies:
        assert body["aggregation"] == "random_effects" and "only rater" in body["notes"][0] and len(body["notes"]) == 1
    desk.store.verify()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_pays_every_item(rule: str) -> None:
    """Values in [0, 1] and standard errors above 0, whichever rule is set."""
    ratings, of, truth = course(drawn, top=0.8)
    found = RULES[rule](ratings, of).items
    assert len(found) == truth.size and all(0 <= value <= 1 and std > 0 for value, std in found.values())


def _rows(
    ratings: list[Rating], of: dict[str, Group], truth: np.ndarray
) -> tuple[list[Row], dict[str, Group], np.ndarray]:
    return [Row(rating.item, rating.rater, rating.overall) for rating in ratings], of, truth
