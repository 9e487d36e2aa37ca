"""`rl.losses` against hand-worked numbers, the papers' definitions (`tests.oracle_ppo`), differences and sharding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.losses import (
    PolicyLoss,
    ValueLoss,
    entropy_bonus,
    importance_mask,
    importance_weights,
    load_balancing_loss,
    policy_loss,
    reply_weights,
    value_loss,
)
from tests import oracle_ppo as oracle
from tests.oracle_ppo import EXAMPLES, SEEDS, Numbers, f64, garbled, identical, masks, same, widened

DUAL_CLIPS = st.sampled_from([None, 1.5, 3.0])
VALUE_CLIPS = st.sampled_from([None, 0.2, 1.0])


def number(x: Tensor | float) -> float:
    return float(x)


def central_differences(loss_of: Callable[[Tensor], Tensor], x_BT: Tensor, step: float = 1e-6) -> Tensor:
    """Return (loss(x + step) - loss(x - step)) / (2 step), one entry at a time."""
    gradient_BT = torch.zeros_like(x_BT)
    for index in itertools.product(*map(range, x_BT.shape)):
        nudge_BT = torch.zeros_like(x_BT)
        nudge_BT[index] = step
        gradient_BT[index] = (loss_of(x_BT + nudge_BT) - loss_of(x_BT - nudge_BT)) / (2 * step)
    return gradient_BT


def gradient(loss_of: Callable[[Tensor], Tensor], x_BT: Tensor) -> Tensor:
    """Return d loss / d x by autograd."""
    leaf_BT = x_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(loss_of(leaf_BT), leaf_BT)
    return gradient_BT


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5 .5 .5 4, advantages 2 2 -1 -1, weights 1 1 1 1/2, clips .2 and .3, eight tokens over all shards.

    Objectives: min(3, 2.6) = 2.6 (clipped), min(1, 1.6) = 1, min(-.5, -.8) = -.8 (clipped), min(-4, -1.3) / 2 = -2;
    sum .8, loss -.1. Dual clip 3 lifts the last to -3 / 2: sum 1.3, loss -.1625. Clipped 2 / 8. The ratios minus 1 sum
    to 2.5 and their logarithms to ln 1.5 = .405465: kl = 2.094535 / 8 = .261817.
    """
    ratios_BT = f64([1.5, 0.5, 7, 0.5, 4])
    old_BT = f64([-1, -2, -3, -4, -5])
    mask_BT = torch.tensor([[True, True, False, True, True]])
    inputs = old_BT + ratios_BT.log(), old_BT, f64([2, 2, 50, -1, -1]), mask_BT, f64([1, 1, 9, 1, 0.5])
    single = policy_loss(*inputs, tokens=8, clip_low=0.2, clip_high=0.3)
    dual = policy_loss(*inputs, tokens=8, clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    assert number(single.loss) == pytest.approx(-0.1, abs=1e-12)
    assert number(dual.loss) == pytest.approx(-0.1625, abs=1e-12)
    for report in (single, dual):
        assert number(report.clip_fraction) == 0.25
        assert number(report.ratio_max) == pytest.approx(4.0, abs=1e-12)
        assert number(report.kl) == pytest.approx(0.261817, abs=1e-6)


@EXAMPLES
@given(masks(), SEEDS, DUAL_CLIPS, st.integers(0, 9))
def test_policy_loss_is_its_definition(mask_BT: Tensor, seed: int, dual_clip: float | None, elsewhere: int) -> None:
    """Loss and reports are those of the case distinction in the papers' figures, over the given number of tokens."""
    numbers, tokens = Numbers(seed), int(mask_BT.sum()) + elsewhere or 1
    new_BT, old_BT, advantages_BT = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT)
    inputs = new_BT, old_BT, advantages_BT, mask_BT, numbers.like(mask_BT).abs()
    actual = policy_loss(*inputs, tokens=tokens, clip_low=0.1, clip_high=0.4, dual_clip=dual_clip)
    expected = oracle.policy_loss(*inputs, tokens=tokens, clip_low=0.1, clip_high=0.4, dual_clip=dual_clip)
    same(actual.loss, expected.loss)
    assert number(actual.clip_fraction) == pytest.approx(expected.clip_fraction, abs=1e-7)
    assert number(actual.kl) == pytest.approx(expected.kl, rel=1e-7, abs=1e-7)
    if mask_BT.any():
        assert number(actual.ratio_max) == pytest.approx(expected.ratio_max, rel=1e-7)


def test_policy_gradient_is_that_of_finite_differences() -> None:
    """On every side of every kink d loss / d log-prob is the central difference, and gradcheck agrees.

    By hand it is -w A rho / tokens where the ratio counts, and 0 where a good token is above 1 + clip_high, a bad one
    below 1 - clip_low or above the dual clip.
    """
    ratios = [0.3, 0.75, 0.85, 1.0, 1.25, 1.35, 2.9, 3.1]
    old_BT, weights_BT = torch.full((2, 8), -1.5, dtype=torch.float64), f64([0.5] * 8, [1.5] * 8)
    advantages_BT = f64([2.0] * 8, [-3.0] * 8)
    ratios_BT, mask_BT = f64(ratios, ratios), torch.ones(2, 8).bool()
    counts_BT = torch.tensor([[r < 1.3 for r in ratios], [0.8 < r < 3.0 for r in ratios]])

    def loss_of(logprobs_BT: Tensor) -> Tensor:
        return policy_loss(
            logprobs_BT, old_BT, advantages_BT, mask_BT, weights_BT,
            tokens=20, clip_low=0.2, clip_high=0.3, dual_clip=3.0,
        ).loss  # fmt: skip

    logprobs_BT = old_BT + ratios_BT.log()
    gradient_BT = gradient(loss_of, logprobs_BT)
    torch.testing.assert_close(gradient_BT, central_differences(loss_of, logprobs_BT), rtol=1e-7, atol=1e-8)
    same(gradient_BT, torch.where(counts_BT, -weights_BT * advantages_BT * ratios_BT / 20, 0.0))
    assert torch.autograd.gradcheck(loss_of, (logprobs_BT.clone().requires_grad_(),))


@EXAMPLES
@given(masks(), SEEDS, DUAL_CLIPS)
def test_the_first_minibatch_is_the_plain_policy_gradient(mask_BT: Tensor, seed: int, dual_clip: float | None) -> None:
    """With new = old every ratio is 1: the gradient is -w A / tokens, nothing is clipped, and kl is 0."""
    numbers, tokens = Numbers(seed), int(mask_BT.sum()) or 1
    old_BT, advantages_BT, weights_BT = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT).abs()

    def report_of(logprobs_BT: Tensor) -> PolicyLoss:
        return policy_loss(
            logprobs_BT, old_BT, advantages_BT, mask_BT, weights_BT,
            tokens=tokens, clip_low=0.2, clip_high=0.2, dual_clip=dual_clip,
        )  # fmt: skip

    expected_BT = torch.where(mask_BT, -weights_BT * advantages_BT / tokens, 0.0)
    same(gradient(lambda logprobs_BT: report_of(logprobs_BT).loss, old_BT), expected_BT)
    report = report_of(old_BT)
    same(report.loss, expected_BT.sum())
    assert (number(report.clip_fraction), number(report.kl)) == (0.0, 0.0)
    assert not mask_BT.any() or number(report.ratio_max) == 1.0


def test_reports_carry_no_gradient() -> None:
    """Only `.loss` is differentiable; the reported numbers hold no graph alive."""
    x_BT, mask_BT = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2).bool()
    ones_BT = torch.ones(1, 2)
    policy = policy_loss(x_BT, ones_BT, ones_BT, mask_BT, ones_BT, tokens=2, clip_low=0.2, clip_high=0.2)
    value = value_loss(x_BT, ones_BT, ones_BT, mask_BT, tokens=2, clip=0.2)
    assert policy.loss.requires_grad and value.loss.requires_grad
    reports = (policy.clip_fraction, policy.ratio_max, policy.kl, value.clip_fraction)
    assert not any(torch.as_tensor(report).requires_grad for report in reports)


def test_value_loss_by_hand() -> None:
    """Old value 1, clip 1/2; value 2 for target 0, value 2 for target 2, value 1.25 for target 1.5; four tokens in all.

    Halved squares: max(4, 1.5^2) / 2 = 2; max(0, .5^2) / 2 = .125, the held value being worse; .25^2 / 2 = .03125. Sum
    2.15625, loss .5390625, clipped 1 / 4. Without the clip 2 + 0 + .03125 over 4 = .5078125.
    """
    inputs = f64([2, 2, 99, 1.25]), f64([1, 1, -99, 1]), f64([0, 2, 99, 1.5]), torch.tensor([[True, True, False, True]])
    clipped, plain = value_loss(*inputs, tokens=4, clip=0.5), value_loss(*inputs, tokens=4, clip=None)
    assert (number(clipped.loss), number(clipped.clip_fraction)) == (0.5390625, 0.25)
    assert (number(plain.loss), number(plain.clip_fraction)) == (0.5078125, 0.0)


@EXAMPLES
@given(masks(), SEEDS, VALUE_CLIPS, st.integers(0, 9))
def test_value_loss_is_its_definition(mask_BT: Tensor, seed: int, clip: float | None, elsewhere: int) -> None:
    """Loss and clip fraction are those of the worse of the two errors, over the given number of tokens."""
    numbers, tokens = Numbers(seed), int(mask_BT.sum()) + elsewhere or 1
    inputs = numbers.like(mask_BT), numbers.like(mask_BT), numbers.like(mask_BT), mask_BT
    actual = value_loss(*inputs, tokens=tokens, clip=clip)
    loss, clip_fraction = oracle.value_loss(*inputs, tokens=tokens, clip=clip)
    same(actual.loss, loss)
    assert number(actual.clip_fraction) == pytest.approx(clip_fraction, abs=1e-7)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_value_gradient_is_that_of_finite_differences(clip: float | None) -> None:
    """On every side of every kink d loss / d value is the central difference, and gradcheck agrees.

    By hand it is (v - R) / tokens, and 0 where the held value (old + clip or old - clip) is the worse one.
    """
    values_BT, returns_BT = f64([0.2, 0.8, 1.2, 1.9, 0.2, 1.9]), f64([0.1, 0.5, 1.1, 1.8, 1.7, 0.1])
    old_BT, mask_BT = torch.ones_like(values_BT), torch.ones(1, 6).bool()
    counts_BT = torch.tensor([[False, True, True, False, True, True]]) | torch.tensor(clip is None)

    def loss_of(new_BT: Tensor) -> Tensor:
        return value_loss(new_BT, old_BT, returns_BT, mask_BT, tokens=9, clip=clip).loss

    gradient_BT = gradient(loss_of, values_BT)
    torch.testing.assert_close(gradient_BT, central_differences(loss_of, values_BT), rtol=1e-7, atol=1e-8)
    same(gradient_BT, torch.where(counts_BT, (values_BT - returns_BT) / 9, 0.0))
    assert torch.autograd.gradcheck(loss_of, (values_BT.clone().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_not_clipping(dtype: torch.dtype) -> None:
    """Values within the clip of the old ones never count as clipped, though old + (new - old) may round off new."""
    generator = torch.Generator().manual_seed(0)
    values_BT, old_BT, returns_BT = (torch.randn(64, 64, generator=generator, dtype=dtype) for _ in range(3))
    report = value_loss(values_BT, old_BT, returns_BT, torch.ones(64, 64).bool(), tokens=4096, clip=20.0)
    assert number(report.clip_fraction) == 0.0


@EXAMPLES
@given(masks(), SEEDS, DUAL_CLIPS, VALUE_CLIPS, st.data())
def test_losses_of_shards_add_up(
    mask_BT: Tensor, seed: int, dual_clip: float | None, value_clip: float | None, data: st.DataObject
) -> None:
    """However the rows are dealt to shards, losses, their gradients and the per-token means add up to the whole's."""
    numbers, tokens = Numbers(seed), int(mask_BT.sum()) or 1
    inputs = [numbers.like(mask_BT) for _ in range(5)]
    owner_B = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(mask_BT), max_size=len(mask_BT))))

    def means_and_gradient(rows_B: Tensor) -> tuple[Tensor, Tensor]:
        new_BT, old_BT, advantages_BT, weights_BT, returns_BT = (x_BT[rows_B] for x_BT in inputs)
        new_BT, on_BT = new_BT.clone().requires_grad_(), mask_BT[rows_B]
        policy = policy_loss(
            new_BT, old_BT, advantages_BT, on_BT, weights_BT.abs(),
            tokens=tokens, clip_low=0.2, clip_high=0.2, dual_clip=dual_clip,
        )  # fmt: skip
        value = value_loss(new_BT, old_BT, returns_BT, on_BT, tokens=tokens, clip=value_clip)
        entropy = entropy_bonus(new_BT, on_BT, tokens=tokens)
        (gradient_BT,) = torch.autograd.grad(policy.loss + value.loss + entropy, new_BT)
        means = (policy.loss, policy.clip_fraction, policy.kl, value.loss, value.clip_fraction, entropy)
        return torch.stack([torch.as_tensor(mean).detach().double() for mean in means]), gradient_BT

    whole, whole_gradient_BT = means_and_gradient(torch.ones(len(mask_BT)).bool())
    shards = [means_and_gradient(owner_B == rank) for rank in range(3) if (owner_B == rank).any()]
    torch.testing.assert_close(torch.stack([means for means, _ in shards]).sum(0), whole, rtol=1e-6, atol=1e-7)
    same(sum((means[[0, 3, 5]] for means, _ in shards), torch.zeros(3)), whole[[0, 3, 5]])
    gradient_BT = torch.cat([torch.zeros(0, mask_BT.shape[1]).double(), *(part for _, part in shards)])
    order = torch.cat([(owner_B == rank).nonzero()[:, 0] for rank in range(3)])
    same(gradient_BT, whole_gradient_BT[order])


def losses_and_gradients(inputs: list[Tensor], mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses and reports on `inputs`, and the gradients of the losses with respect to their first input."""
    new_BT, old_BT, third_BT, weights_BT = inputs
    leaf_BT = new_BT.clone().requires_grad_()
    policy: PolicyLoss = policy_loss(
        leaf_BT, old_BT, third_BT, mask_BT, weights_BT, tokens=5, clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    value: ValueLoss = value_loss(leaf_BT, old_BT, third_BT, mask_BT, tokens=5, clip=0.2)
    entropy = entropy_bonus(leaf_BT, mask_BT, tokens=5)
    gradients = [torch.autograd.grad(loss, leaf_BT)[0] for loss in (policy.loss, value.loss, entropy)]
    reports = [policy.loss, policy.clip_fraction, policy.ratio_max, policy.kl, value.loss, value.clip_fraction, entropy]
    return torch.stack([torch.as_tensor(report).detach().double() for report in reports]), torch.stack(gradients)


@EXAMPLES
@given(masks(), SEEDS, st.sampled_from([1e4, 1e30]))
def test_what_was_not_sampled_does_not_matter(mask_BT: Tensor, seed: int, garbage: float) -> None:
    """Garbage at masked-out positions, even where exp() of it overflows, changes no bit of losses and gradients.

    The gradient at those positions is 0, not NaN.
    """
    numbers = Numbers(seed)
    inputs = [numbers.like(mask_BT) for _ in range(4)]
    noise = [garbled(inputs[0], mask_BT, garbage), *(garbled(x_BT, mask_BT, -garbage) for x_BT in inputs[1:])]
    clean_reports, clean_gradients = losses_and_gradients(inputs, mask_BT)
    reports, gradients = losses_and_gradients(noise, mask_BT)
    identical(reports, clean_reports)
    identical(gradients, clean_gradients)
    identical(gradients.masked_fill(mask_BT, 0.0), torch.zeros_like(gradients))
    for cap in (None, 1.5):
        clean_BT = importance_weights(inputs[0], inputs[1], mask_BT, cap=cap)
        identical(importance_weights(noise[0], noise[1], mask_BT, cap=cap), clean_BT)


@EXAMPLES
@given(masks(), SEEDS, st.integers(1, 20))
def test_right_padding_does_not_matter(mask_BT: Tensor, seed: int, columns: int) -> None:
    """More right padding changes no gradient and no importance weight by a bit, and no sum beyond its rounding."""
    numbers, width = Numbers(seed), mask_BT.shape[1]
    inputs = [numbers.like(mask_BT) for _ in range(4)]
    wide, wide_mask_BT = [widened(x_BT, columns, 77.0) for x_BT in inputs], widened(mask_BT, columns, False)
    reports, gradients = losses_and_gradients(inputs, mask_BT)
    wide_reports, wide_gradients = losses_and_gradients(wide, wide_mask_BT)
    torch.testing.assert_close(wide_reports, reports, rtol=1e-12, atol=1e-12)
    identical(wide_gradients[..., :width], gradients)
    identical(wide_gradients[..., width:], torch.zeros_like(wide_gradients[..., width:]))
    wide_BT = importance_weights(wide[0], wide[1], wide_mask_BT, cap=1.5)
    identical(wide_BT, widened(importance_weights(inputs[0], inputs[1], mask_BT, cap=1.5), columns, 0.0))


@EXAMPLES
@given(masks(), SEEDS, st.sampled_from([None, 0.5, 1.0, 2.0, math.inf]))
def test_importance_weights_are_their_definition(mask_BT: Tensor, seed: int, cap: float | None) -> None:
    """Sampled tokens weigh min(learner / sampler, cap), or 1 without a cap; the others weigh 0."""
    numbers = Numbers(seed)
    learner_BT, sampler_BT = numbers.like(mask_BT), numbers.like(mask_BT)
    actual_BT = importance_weights(learner_BT, sampler_BT, mask_BT, cap=cap)
    same(actual_BT, oracle.importance_weights(learner_BT, sampler_BT, mask_BT, cap=cap))


@EXAMPLES
@given(st.integers(2, 6), SEEDS)
def test_importance_weights_correct_the_sampler(words: int, seed: int) -> None:
    """Over a whole vocabulary the sampler's mean of weight * f is the learner's mean of f while the cap is far."""
    numbers, mask_BT = Numbers(seed), torch.ones(1, words).bool()
    learner_BT, sampler_BT = numbers.like(mask_BT).log_softmax(-1), numbers.like(mask_BT).log_softmax(-1)
    f_BT, weights_BT = numbers.like(mask_BT), importance_weights(learner_BT, sampler_BT, mask_BT, cap=1e9)
    same((sampler_BT.exp() * weights_BT * f_BT).sum(), (learner_BT.exp() * f_BT).sum())


def test_importance_mask_by_hand() -> None:
    """Of ratios .4, .5, 1, 5 and 6 within [.5, 5] the three in the middle train, bounds included; a client's token does not."""
    sampler_BT, mask_BT = f64([-1, -1, -1, -2, -2, -1]), torch.tensor([[True] * 5 + [False]])
    learner_BT = sampler_BT + f64([0.4, 0.5, 1, 5, 6, 1]).log()
    kept_BT = importance_mask(learner_BT, sampler_BT, mask_BT, low=0.5 - 1e-12, high=5 + 1e-12)
    assert kept_BT.tolist() == [[False, True, True, True, False, False]]


@EXAMPLES
@given(masks(), SEEDS)
def test_masked_tokens_do_not_train(mask_BT: Tensor, seed: int) -> None:
    """With the mask on the weights, the gradient of the policy's loss is 0 exactly on tokens outside of the range, and what it is
    without the mask on the others, also where log-probs are infinitely far apart."""
    numbers = Numbers(seed)
    old_BT, sampler_BT, advantages_BT = (numbers.like(mask_BT) for _ in range(3))
    sampler_BT[0, 0] = -math.inf
    kept_BT = importance_mask(old_BT, sampler_BT, mask_BT, low=0.5, high=2.0)
    gradients = []
    for weights_BT in (torch.ones_like(old_BT), torch.ones_like(old_BT) * kept_BT):
        logprobs_BT = old_BT.clone().requires_grad_()
        policy_loss(
            logprobs_BT, old_BT, advantages_BT, mask_BT, weights_BT, tokens=7, clip_low=0.2, clip_high=0.2
        ).loss.backward()
        assert logprobs_BT.grad is not None
        gradients.append(logprobs_BT.grad)
    identical(gradients[1], torch.where(kept_BT, gradients[0], 0))
    assert not kept_BT[0, 0] and not (kept_BT & ~mask_BT).any()


def test_entropy_bonus_by_hand() -> None:
    """Entropies 1, 2 and 4 (and a client's 99) over ten tokens average .7."""
    entropy_BT, mask_BT = f64([1, 99, 2], [4, 99, 99]), torch.tensor([[True, False, True], [True, False, False]])
    same(entropy_bonus(entropy_BT, mask_BT, tokens=10), 0.7)


def test_load_balancing_by_hand() -> None:
    """Shares 3/4 1/4 at probabilities .6 .4 give .45 + .1 = .55; halves at halves give .5; times E = 2, mean 1.05."""
    probs_LE, shares_LE = f64([0.6, 0.4], [0.5, 0.5]), f64([0.75, 0.25], [0.5, 0.5])
    same(load_balancing_loss(probs_LE, shares_LE), 1.05)


@EXAMPLES
@given(st.integers(1, 4), st.integers(1, 8), SEEDS)
def test_load_balancing_is_its_definition(layers: int, experts: int, seed: int) -> None:
    """The loss is eq. 4 averaged over layers, its gradient in P is E f / L, and shards of P add up to the whole."""
    numbers, shape_LE = Numbers(seed), torch.ones(layers, experts)
    first_LE, second_LE = numbers.like(shape_LE).exp(), numbers.like(shape_LE).exp()
    total_L1 = (first_LE + second_LE).sum(-1, keepdim=True)
    first_LE, second_LE, shares_LE = first_LE / total_L1, second_LE / total_L1, numbers.like(shape_LE).softmax(-1)
    whole = load_balancing_loss(first_LE + second_LE, shares_LE)
    same(whole, oracle.load_balancing_loss(first_LE + second_LE, shares_LE))
    same(load_balancing_loss(first_LE, shares_LE) + load_balancing_loss(second_LE, shares_LE), whole)
    same(gradient(lambda probs_LE: load_balancing_loss(probs_LE, shares_LE), first_LE), experts * shares_LE / layers)


@EXAMPLES
@given(st.integers(1, 4), st.integers(2, 8), SEEDS)
def test_an_even_load_is_the_best_of_self_consistent_loads(layers: int, experts: int, seed: int) -> None:
    """Where shares equal probabilities the loss is 1 for even experts, more for others, E when one expert takes all."""
    probs_LE = Numbers(seed).like(torch.ones(layers, experts)).softmax(-1)
    even_LE = torch.full_like(probs_LE, 1 / experts)
    alone_LE = torch.zeros_like(probs_LE).index_fill(1, torch.tensor([experts - 1]), 1.0)
    same(load_balancing_loss(even_LE, even_LE), 1.0)
    same(load_balancing_loss(alone_LE, alone_LE), float(experts))
    assert 1.0 < number(load_balancing_loss(probs_LE, probs_LE)) < experts


@EXAMPLES
@given(masks(), SEEDS)
def test_weighted_means_over_tokens_are_the_averages_they_say(mask_BT: Tensor, seed: int) -> None:
    """sum w x / tokens is the mean over tokens; over replies of a reply's mean; over replies of its sum / budget."""
    x_BT, tokens = Numbers(seed).like(mask_BT), max(int(mask_BT.sum()), 1)
    replies = [row[kept] for row, kept in zip(x_BT, mask_BT, strict=True) if kept.any()]
    expected = {
        "token": [float(torch.cat(replies).mean())] if replies else [],
        "reply": [float(reply.mean()) for reply in replies],
        "budget": [float(reply.sum()) / 32 for reply in replies],
    }
    for per, parts in expected.items():
        weights_BT = reply_weights(mask_BT, per, budget=32)  # type: ignore[arg-type]
        assert not weights_BT[~mask_BT].any()
        mean = float((weights_BT.double() * x_BT).sum() / tokens)
        assert mean == pytest.approx(math.fsum(parts) / max(len(parts), 1), rel=1e-5, abs=1e-6), per
