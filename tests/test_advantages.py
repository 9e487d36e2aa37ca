"""`rl.advantages` against hand-worked numbers, the papers' definitions (`tests.oracle_ppo`) and its invariances."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rl.advantages import (
    KlController,
    gae,
    group_relative,
    kl_penalty,
    leave_one_out,
    masked_moments,
    shape_rewards,
    whiten,
)
from tests import oracle_ppo as oracle
from tests.oracle_ppo import EXAMPLES, SEEDS, Numbers, f64, garbled, identical, masks, same, sampled, widened

UNIT = st.sampled_from([0.0, 0.5, 0.95, 1.0])
Kind = Literal["k1", "k2", "k3"]
KINDS: tuple[Kind, ...] = ("k1", "k2", "k3")
ANY_KIND = st.sampled_from(KINDS)


def test_gae_by_hand() -> None:
    """Rewards 1 2 4, values 2 4 8, gamma = lam = 1/2, worked by hand, give exactly these advantages and returns.

    Cut short, V beyond = 16: delta = 1 + 2 - 2, 2 + 4 - 4, 4 + 8 - 8 = 1 2 4; A = 4, 2 + 4/4 = 3, 1 + 3/4 = 1.75.
    Ended, V beyond = 0:      delta = 1, 2, 4 + 0 - 8 = -4;                    A = -4, 2 - 4/4 = 1, 1 + 1/4 = 1.25.
    The second kind of row is gapped: the two client tokens in the middle and their 99s take no part.
    """
    rewards_BT = f64([1, 2, 4, 99, 99], [1, 99, 99, 2, 4], [99, 99, 99, 99, 99])
    values_BT = f64([2, 4, 8, 99, 99], [2, 99, 99, 4, 8], [99, 99, 99, 99, 99])
    mask_BT = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    last_value_B = torch.tensor([16.0, 0.0, 7.0], dtype=torch.float64)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=0.5, lam=0.5)
    identical(advantages_BT, f64([1.75, 3, 4, 0, 0], [1.25, 0, 0, 1, -4], [0, 0, 0, 0, 0]))
    identical(returns_BT, f64([3.75, 7, 12, 0, 0], [3.25, 0, 0, 5, 4], [0, 0, 0, 0, 0]))


@EXAMPLES
@given(masks(), SEEDS, UNIT, UNIT)
def test_gae_is_the_discounted_sum_of_deltas(mask_BT: Tensor, seed: int, gamma: float, lam: float) -> None:
    """A_t = sum_l (gamma lam)^l delta_{t+l} over the sampled tokens, and returns are advantages + values."""
    numbers = Numbers(seed)
    rewards_BT, values_BT, last_value_B = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT[:, 0])
    actual = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=gamma, lam=lam)
    expected = oracle.gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=gamma, lam=lam)
    same(actual[0], expected[0])
    same(actual[1], expected[1])


@EXAMPLES
@given(st.integers(1, 6), SEEDS, UNIT, UNIT)
def test_gae_is_the_weighted_mean_of_k_step_advantages(length: int, seed: int, gamma: float, lam: float) -> None:
    """A_0 = (1 - lam) (A(1) + lam A(2) + ...), where A(k) looks k rewards ahead and then asks the critic.

    Past the end every A(k) is A(n), so A(n) carries the rest of the weight, lam^(n-1). With lam = 0 this is the
    temporal difference delta, with lam = 1 the discounted return minus the value.
    """
    numbers, mask_BT = Numbers(seed), torch.ones(1, length).bool()
    rewards_BT, values_BT, last_value_B = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT[:, 0])
    rewards, values = rewards_BT[0].tolist(), values_BT[0].tolist() + last_value_B.tolist()
    k_step = [
        sum(gamma**i * rewards[i] for i in range(k)) + gamma**k * values[k] - values[0] for k in range(1, length + 1)
    ]
    expected = (1 - lam) * sum(lam**i * a for i, a in enumerate(k_step[:-1])) + lam ** (length - 1) * k_step[-1]
    advantages_BT, _ = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=gamma, lam=lam)
    assert advantages_BT[0, 0].item() == pytest.approx(expected, abs=1e-10)


@EXAMPLES
@given(masks(), SEEDS, UNIT, UNIT)
def test_gae_carries_over_gaps(mask_BT: Tensor, seed: int, gamma: float, lam: float) -> None:
    """A gapped row has, bit for bit, the advantages of the row from which everything not sampled was cut out."""
    numbers = Numbers(seed)
    rewards_BT, values_BT, last_value_B = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT[:, 0])
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=gamma, lam=lam)
    for b, positions in enumerate(sampled(mask_BT)):
        if positions:
            row = slice(b, b + 1)
            cut_BT = torch.ones(1, len(positions)).bool()
            advantages_1T, returns_1T = gae(
                rewards_BT[row, positions], values_BT[row, positions], last_value_B[row], cut_BT, gamma=gamma, lam=lam
            )
            identical(advantages_BT[row, positions], advantages_1T)
            identical(returns_BT[row, positions], returns_1T)


def per_token_results(mask_BT: Tensor, disturb: Callable[[Tensor], Tensor], new_mask_BT: Tensor, seed: int) -> Tensor:
    """Run every per-token function on inputs that `disturb` has changed outside the mask; stack the results."""
    numbers = Numbers(seed)
    first_BT, second_BT, per_row_B = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT[:, 0])
    x_BT, y_BT = disturb(first_BT), disturb(second_BT)
    population = f64(oracle.tokens_of(first_BT, mask_BT))
    moments_3 = masked_moments(population, torch.ones(population.shape).bool())
    return torch.stack(
        [
            *gae(x_BT, y_BT, per_row_B, new_mask_BT, gamma=0.99, lam=0.95),
            *(kl_penalty(x_BT, y_BT, new_mask_BT, kind=kind) for kind in KINDS),
            shape_rewards(per_row_B, x_BT, new_mask_BT, kl_coef=0.2),
            whiten(x_BT, new_mask_BT, moments_3),
        ]
    )


@EXAMPLES
@given(masks(), SEEDS, st.sampled_from([1e4, 1e30]))
def test_what_was_not_sampled_does_not_matter(mask_BT: Tensor, seed: int, garbage: float) -> None:
    """Garbage at masked-out positions changes no bit of any per-token result, which is 0 there."""
    clean = per_token_results(mask_BT, lambda x_BT: x_BT, mask_BT, seed)
    identical(per_token_results(mask_BT, lambda x_BT: garbled(x_BT, mask_BT, garbage), mask_BT, seed), clean)
    identical(clean.masked_fill(mask_BT, 0.0), torch.zeros_like(clean))


@EXAMPLES
@given(masks(), SEEDS, st.integers(1, 20))
def test_right_padding_does_not_matter(mask_BT: Tensor, seed: int, columns: int) -> None:
    """More right padding, whatever it holds, changes no bit of any per-token result, and is itself answered with 0."""
    clean = per_token_results(mask_BT, lambda x_BT: x_BT, mask_BT, seed)
    wider_BT = widened(mask_BT, columns, False)
    wide = per_token_results(mask_BT, lambda x_BT: widened(x_BT, columns, -1e4), wider_BT, seed)
    identical(wide[..., : mask_BT.shape[1]], clean)
    identical(wide[..., mask_BT.shape[1] :], torch.zeros(*clean.shape[:2], columns, dtype=torch.float64))


def test_kl_estimators_by_hand() -> None:
    """Policy 1/2, reference 1/4: log r = ln 2 = .693147; k2 = .240227; k3 = 1/2 - 1 + .693147 = .193147.

    Policy 1/4, reference 1/2: log r = -ln 2; k2 is the same; k3 = 2 - 1 - .693147 = .306853.
    """
    logprobs_BT, reference_BT = torch.log(f64([0.5, 0.25, 0.9])), torch.log(f64([0.25, 0.5, 0.1]))
    mask_BT = torch.tensor([[True, True, False]])
    by_hand: dict[Kind, Tensor] = {
        "k1": f64([0.693147, -0.693147, 0]),
        "k2": f64([0.240227, 0.240227, 0]),
        "k3": f64([0.193147, 0.306853, 0]),
    }
    for kind, expected_BT in by_hand.items():
        kl_BT = kl_penalty(logprobs_BT, reference_BT, mask_BT, kind=kind)
        torch.testing.assert_close(kl_BT, expected_BT, rtol=0, atol=1e-6)


@EXAMPLES
@given(masks(), SEEDS, ANY_KIND)
def test_kl_estimators_are_their_definitions(mask_BT: Tensor, seed: int, kind: Kind) -> None:
    """k1, k2 and k3 are the blog's three expressions of r = reference / policy."""
    numbers = Numbers(seed)
    logprobs_BT, reference_BT = 2 * numbers.like(mask_BT), 2 * numbers.like(mask_BT)
    actual_BT = kl_penalty(logprobs_BT, reference_BT, mask_BT, kind=kind)
    same(actual_BT, oracle.kl_penalty(logprobs_BT, reference_BT, mask_BT, kind=kind))


@EXAMPLES
@given(st.integers(2, 6), SEEDS)
def test_k1_and_k3_are_unbiased(words: int, seed: int) -> None:
    """Over a whole vocabulary weighted by the policy, k1 and k3 average to KL(policy || reference), not the reverse."""
    numbers, mask_BT = Numbers(seed), torch.ones(1, words).bool()
    policy_BT, reference_BT = numbers.like(mask_BT).log_softmax(-1), numbers.like(mask_BT).log_softmax(-1)
    pairs = list(zip(policy_BT[0].tolist(), reference_BT[0].tolist(), strict=True))
    exact = math.fsum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in pairs)
    for kind in ("k1", "k3"):
        expectation = (policy_BT.exp() * kl_penalty(policy_BT, reference_BT, mask_BT, kind=kind)).sum().item()
        assert expectation == pytest.approx(exact, abs=1e-12)


@EXAMPLES
@given(st.floats(-20, 20))
def test_k3_is_never_negative(log_ratio: float) -> None:
    """k3 of any single token is at least 0, up to the rounding of one float64 addition."""
    kl_BT = kl_penalty(f64([log_ratio]), f64([0.0]), torch.ones(1, 1).bool(), kind="k3")
    assert kl_BT.item() >= -(2.0**-52)


def test_shaped_rewards_by_hand() -> None:
    """Score 3, coefficient 1/2, KL .5 1 (client) .25: the reply pays .25, .5, 0, .125 and earns 3 on its last token."""
    mask_BT = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    kl_BT = f64([0.5, 1, 0, 0.25, 0], [0, 0, 0, 0, 0])
    rewards_BT = shape_rewards(torch.tensor([3.0, 5.0], dtype=torch.float64), kl_BT, mask_BT, kl_coef=0.5)
    identical(rewards_BT, f64([-0.25, -0.5, 0, 2.875, 0], [0, 0, 0, 0, 0]))


@EXAMPLES
@given(masks(), SEEDS, st.sampled_from([0.0, 0.05, 1.0]))
def test_shaped_rewards_are_their_definition(mask_BT: Tensor, seed: int, kl_coef: float) -> None:
    """Every sampled token pays kl_coef times its KL and a row's last one earns the score; an empty row is all 0."""
    numbers = Numbers(seed)
    score_B, kl_BT = numbers.like(mask_BT[:, 0]), numbers.like(mask_BT)
    same(
        shape_rewards(score_B, kl_BT, mask_BT, kl_coef=kl_coef),
        oracle.shape_rewards(score_B, kl_BT, mask_BT, kl_coef=kl_coef),
    )


@EXAMPLES
@given(masks(), SEEDS, st.integers(0, 4))
def test_shards_whiten_as_one_batch(mask_BT: Tensor, seed: int, cut: int) -> None:
    """Moments of shards add up to the whole's; whitened with the sum, every shard holds what the whole batch would."""
    x_BT = 3.0 + 2.0 * Numbers(seed).like(mask_BT)
    population = oracle.tokens_of(x_BT, mask_BT)
    shards = [(x_BT[:cut], mask_BT[:cut]), (x_BT[cut:], mask_BT[cut:])]
    moments_3 = torch.stack([masked_moments(*shard) for shard in shards]).sum(0)
    same(moments_3, f64([len(population), math.fsum(population), math.fsum(x**2 for x in population)])[0])
    white_BT = torch.cat([whiten(*shard, moments_3) for shard in shards])
    torch.testing.assert_close(white_BT, oracle.whiten(x_BT, mask_BT, population), rtol=1e-7, atol=1e-9)


@EXAMPLES
@given(masks(), SEEDS)
def test_whitened_tokens_have_mean_0_and_variance_1(mask_BT: Tensor, seed: int) -> None:
    """Over sampled tokens the result has mean 0 and variance var / (var + eps): 1 for any spread that matters."""
    assume(mask_BT.sum() > 1)
    x_BT = 3.0 + 2.0 * Numbers(seed).like(mask_BT)
    variance = x_BT[mask_BT].var(correction=0).item()
    white_N = whiten(x_BT, mask_BT, masked_moments(x_BT, mask_BT), eps=1e-3)[mask_BT]
    assert white_N.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white_N.var(correction=0).item() == pytest.approx(variance / (variance + 1e-3), rel=1e-7)


@EXAMPLES
@given(masks(), SEEDS)
def test_equal_advantages_whiten_to_zero(mask_BT: Tensor, seed: int) -> None:
    """When all tokens are equal, as with one token or none, nothing is above the mean: the result is 0, never NaN.

    At this magnitude the rounded mean square can fall below the squared mean by more than eps.
    """
    x_BT = 1e5 * Numbers(seed).like(torch.ones(1, 1)).expand(mask_BT.shape)
    white_BT = whiten(x_BT, mask_BT, masked_moments(x_BT, mask_BT))
    torch.testing.assert_close(white_BT, torch.zeros_like(x_BT), rtol=0, atol=1e-4)


def test_moments_of_float32_are_counted_in_float64() -> None:
    """Advantages of 1000 +- 1 in float32 whiten to +-1: a float32 sum of squares would lose the spread altogether."""
    x_BT = torch.tensor([[999.0, 1001.0] * 5000])
    mask_BT = torch.ones(x_BT.shape).bool()
    moments_3 = masked_moments(x_BT, mask_BT)
    assert moments_3.dtype is torch.float64
    assert moments_3.tolist() == [10_000, 10_000_000, 10_000_010_000]
    torch.testing.assert_close(whiten(x_BT, mask_BT, moments_3).double(), x_BT.double() - 1000, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kl", "coef"),
    [(6.0, 0.2), (6.6, 0.201), (5.4, 0.199), (12.0, 0.202), (600.0, 0.202), (0.0, 0.198), (-3.0, 0.198)],
)
def test_kl_controller_by_hand(kl: float, coef: float) -> None:
    """Coefficient .2, target 6, 500 replies of a horizon of 10,000 (K = .05), worked by hand.

    On target nothing moves; 10 % off moves it by .2 * .05 * .1 = .001; 20 % off or more by .2 * .05 * .2 = .002.
    """
    assert KlController(0.2, 6.0, 10_000).after(kl, 500).coef == pytest.approx(coef, abs=1e-15)


@EXAMPLES
@given(st.floats(0, 2), st.floats(0.1, 20), st.integers(1, 10**5), st.floats(-50, 50), st.integers(0, 1024))
def test_kl_controller_is_its_definition(coef: float, target: float, horizon: int, kl: float, replies: int) -> None:
    """The adaptive controller follows Ziegler et al.; the fixed one never moves; both return and never change."""
    adaptive, fixed = KlController(coef, target, horizon), KlController(coef, None, horizon)
    expected = oracle.adapted_kl_coef(coef, target, horizon, kl=kl, replies=replies)
    after = adaptive.after(kl, replies)
    assert after.coef == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert (after.target, after.horizon) == (target, horizon)
    assert adaptive == KlController(coef, target, horizon)
    assert fixed.after(kl, replies) == fixed


def test_kl_controller_is_frozen() -> None:
    """A controller is a value: assigning to it is refused."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        KlController(0.2, 6.0, 10_000).coef = 1.0  # type: ignore[misc]


SCORES = f64([1, 3, 10, 2, 99, 4, 7])[0]
GROUPS = torch.tensor([0, 0, 1, 0, 0, 2, 1])  # the fourth group of 99 was dropped; 4 is alone
COUNTED = torch.tensor([1, 1, 1, 1, 0, 1, 1]).bool()


def test_group_relative_by_hand() -> None:
    """Scores 1 3 2 have mean 2 and deviation 1, scores 10 7 mean 8.5 and deviation 3 / sqrt 2; a dropped reply and one alone in
    its group get 0, and the dropped one's score changes nobody's."""
    centred = f64([-1, 1, 1.5, 0, 0, 0, -1.5])[0]
    identical(group_relative(SCORES, GROUPS, COUNTED, scaled=False), centred)
    deviation = f64([1, 1, 3 / math.sqrt(2), 1, 1, 1, 3 / math.sqrt(2)])[0]
    same(group_relative(SCORES, GROUPS, COUNTED, scaled=True), centred / (deviation + 1e-4))


def test_leave_one_out_by_hand() -> None:
    """Each against the mean of the others: 1 - 5/2, 3 - 3/2, 2 - 4/2; 10 - 7 and 7 - 10; none for the dropped and the lone."""
    identical(leave_one_out(SCORES, GROUPS, COUNTED), f64([-1.5, 1.5, 3, 0, 0, 0, -3])[0])


@EXAMPLES
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), SEEDS, st.floats(0.1, 9), st.floats(-9, 9))
def test_groups_are_compared_with_themselves_alone(groups: list[int], seed: int, scale: float, shift: float) -> None:
    """Advantages of a group sum to 0, whatever is added to its scores; what other groups score changes nothing; leaving one out
    is the group's own deviation times n / (n - 1); scaled scores give scaled advantages, or the same ones when divided."""
    group_B = torch.tensor(groups)
    score_B, counted_B = Numbers(seed).like(group_B), torch.ones_like(group_B).bool()
    plain = group_relative(score_B, group_B, counted_B, scaled=False)
    for group in set(groups):
        assert abs(float(plain[group_B == group].sum())) < 1e-9
    moved_B = torch.where(group_B == groups[0], score_B + shift, score_B * scale)
    same(group_relative(moved_B, group_B, counted_B, scaled=False)[group_B == groups[0]], plain[group_B == groups[0]])
    count_B = (group_B[:, None] == group_B).sum(1)
    same(leave_one_out(score_B, group_B, counted_B), plain * count_B / (count_B - 1).clamp_min(1))
    divided = group_relative(score_B, group_B, counted_B, scaled=True, eps=0)
    several = count_B > 1
    same(group_relative(scale * score_B, group_B, counted_B, scaled=True, eps=0)[several], divided[several])
