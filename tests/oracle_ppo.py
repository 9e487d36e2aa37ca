"""Slow and obvious PPO mathematics: the definitions of the papers, token by token, in Python floats (float64).

`tests/test_advantages.py` and `tests/test_losses.py` hold `rl.advantages` and `rl.losses` to these functions. Nothing
here is vectorised, recursive or clever: each function loops over rows and over the positions that the policy sampled,
and writes the case distinction that its paper draws or states. The last section makes inputs and compares outputs.

Axes: B sequences, T token positions, L layers, E experts. `mask_BT` is True on tokens that the policy sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor


def sampled(mask_BT: Tensor) -> list[list[int]]:
    """Return, per row, the positions of the sampled tokens in order."""
    return [[t for t, on in enumerate(row) if on] for row in mask_BT.tolist()]


def gae(
    rewards_BT: Tensor, values_BT: Tensor, last_value_B: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Schulman et al. 2016 (arXiv:1506.02438), eq. 16, as the finite sum A_t = sum_l (gamma lam)^l delta_{t+l}.

    Time counts sampled tokens only. Returns (advantages_BT, advantages + values), 0 where nothing was sampled.
    """
    advantages_BT, returns_BT = torch.zeros(mask_BT.shape).double(), torch.zeros(mask_BT.shape).double()
    for b, positions in enumerate(sampled(mask_BT)):
        rewards = [rewards_BT[b, t].item() for t in positions]
        values = [values_BT[b, t].item() for t in positions] + [last_value_B[b].item()]
        deltas = [reward + gamma * values[i + 1] - values[i] for i, reward in enumerate(rewards)]
        for i, t in enumerate(positions):
            advantage = math.fsum((gamma * lam) ** lag * delta for lag, delta in enumerate(deltas[i:]))
            advantages_BT[b, t] = advantage
            returns_BT[b, t] = advantage + values[i]
    return advantages_BT, returns_BT


def kl_penalty(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor, *, kind: str) -> Tensor:
    """Schulman, "Approximating KL divergence", in its own letters: x ~ q (policy), p the reference, r = p(x) / q(x)."""
    kl_BT = torch.zeros(mask_BT.shape).double()
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            log_r = reference_logprobs_BT[b, t].item() - logprobs_BT[b, t].item()
            r = math.exp(log_r)
            kl_BT[b, t] = {"k1": -log_r, "k2": log_r**2 / 2, "k3": (r - 1) - log_r}[kind]
    return kl_BT


def shape_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """Ziegler et al. 2019 (arXiv:1909.08593), eq. 2: every token pays its KL, the last one earns the score."""
    rewards_BT = torch.zeros(mask_BT.shape).double()
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            earned = score_B[b].item() if t == positions[-1] else 0.0
            rewards_BT[b, t] = earned - kl_coef * kl_BT[b, t].item()
    return rewards_BT


def tokens_of(x_BT: Tensor, mask_BT: Tensor) -> list[float]:
    """Return the entries at sampled positions, row after row."""
    return [x_BT[b, t].item() for b, positions in enumerate(sampled(mask_BT)) for t in positions]


def whiten(x_BT: Tensor, mask_BT: Tensor, population: list[float], *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) with the mean and the two-pass population variance of `population`."""
    white_BT = torch.zeros(mask_BT.shape).double()
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            mean = math.fsum(population) / len(population)
            variance = math.fsum((x - mean) ** 2 for x in population) / len(population)
            white_BT[b, t] = (x_BT[b, t].item() - mean) / math.sqrt(variance + eps)
    return white_BT


def adapted_kl_coef(coef: float, target: float, horizon: int, *, kl: float, replies: int) -> float:
    """Ziegler et al., section 2.2: e = clip(kl / target - 1, -0.2, 0.2), beta <- beta (1 + K e); K = n / horizon."""
    error = kl / target - 1
    if error > 0.2:
        error = 0.2
    elif error < -0.2:
        error = -0.2
    return coef * (1 + replies / horizon * error)


@dataclass(frozen=True)
class Policy:
    """What `policy_loss` must report."""

    loss: float
    clip_fraction: float
    ratio_max: float
    kl: float


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    weights_BT: Tensor,
    *,
    tokens: float,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Policy:
    """Schulman et al. 2017 (arXiv:1707.06347), figure 1: a good token gains nothing above 1 + clip_high, a bad one
    nothing below 1 - clip_low; Ye et al. 2020 (arXiv:1912.09729), figure 2: a bad one loses nothing above dual_clip.
    """
    objectives, ratios, clipped, kls = [], [], 0, []
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            log_ratio = logprobs_BT[b, t].item() - old_logprobs_BT[b, t].item()
            ratio, advantage = math.exp(log_ratio), advantages_BT[b, t].item()
            effective = ratio
            if advantage > 0 and ratio > 1 + clip_high:
                effective = 1 + clip_high
                clipped += 1
            if advantage < 0 and ratio < 1 - clip_low:
                effective = 1 - clip_low
                clipped += 1
            if advantage < 0 and dual_clip is not None and ratio > dual_clip:
                effective = dual_clip
            objectives.append(weights_BT[b, t].item() * effective * advantage)
            ratios.append(ratio)
            kls.append(ratio - 1 - log_ratio)
    loss = -math.fsum(objectives) / tokens
    return Policy(loss, clipped / tokens, max(ratios, default=math.nan), math.fsum(kls) / tokens)


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, tokens: float, clip: float | None
) -> tuple[float, float]:
    """Half the worse of two squared errors: of the value, and of the value held within `clip` of the old one.

    Returns (loss, clip_fraction): the share of tokens whose held value is strictly the worse one.
    """
    losses, clipped = [], 0
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            value, old, target = values_BT[b, t].item(), old_values_BT[b, t].item(), returns_BT[b, t].item()
            held = value
            if clip is not None and value > old + clip:
                held = old + clip
            elif clip is not None and value < old - clip:
                held = old - clip
            if abs(held - target) > abs(value - target):
                losses.append((held - target) ** 2 / 2)
                clipped += 1
            else:
                losses.append((value - target) ** 2 / 2)
    return math.fsum(losses) / tokens, clipped / tokens


def importance_weights(
    learner_logprobs_BT: Tensor, sampled_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float | None
) -> Tensor:
    """Truncated importance sampling: learner over sampler probability, at most `cap`; None switches it off."""
    weights_BT = torch.zeros(mask_BT.shape).double()
    for b, positions in enumerate(sampled(mask_BT)):
        for t in positions:
            ratio = math.exp(learner_logprobs_BT[b, t].item() - sampled_logprobs_BT[b, t].item())
            weights_BT[b, t] = 1.0 if cap is None else min(ratio, cap)
    return weights_BT


def load_balancing_loss(router_probs_LE: Tensor, token_share_LE: Tensor) -> float:
    """Fedus et al. 2021 (arXiv:2101.03961), eq. 4 without alpha: E sum_e f_e P_e, the mean over layers."""
    layers = [
        len(shares) * math.fsum(share * prob for share, prob in zip(shares, probs, strict=True))
        for probs, shares in zip(router_probs_LE.tolist(), token_share_LE.tolist(), strict=True)
    ]
    return math.fsum(layers) / len(layers)


# Inputs and comparison. A test draws a mask and a seed; numbers come from the seed, so none sits on a kink.

EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Draw mask_BT whose rows are full, right-padded, gapped or empty."""
    width = draw(st.integers(1, 7))
    full = st.just([True] * width)
    padded = st.integers(0, width).map(lambda length: [t < length for t in range(width)])
    gapped = st.lists(st.booleans(), min_size=width, max_size=width)
    return torch.tensor(draw(st.lists(st.one_of(full, padded, gapped), min_size=1, max_size=4)))


class Numbers:
    """Seeded standard normal tensors, float64."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def like(self, mask: Tensor) -> Tensor:
        """Return a tensor of the shape of `mask`."""
        return torch.randn(mask.shape, generator=self._generator, dtype=torch.float64)


def garbled(x_BT: Tensor, mask_BT: Tensor, garbage: float) -> Tensor:
    """Return `x_BT` with `garbage` of alternating sign wherever nothing was sampled."""
    signs_T = 1.0 - 2.0 * (torch.arange(x_BT.shape[1]) % 2).double()
    return torch.where(mask_BT, x_BT, garbage * signs_T)


def widened(x_BT: Tensor, columns: int, fill: float) -> Tensor:
    """Return `x_BT` with `columns` more positions of `fill` on the right (False for a mask)."""
    return torch.nn.functional.pad(x_BT, (0, columns), value=fill)


def f64(*rows: list[float]) -> Tensor:
    """Return the matrix of `rows` in float64."""
    return torch.tensor(rows, dtype=torch.float64)


def same(actual: Tensor, expected: Tensor | float) -> None:
    """Assert equality to 1e-10, relative or absolute."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-10, atol=1e-10)


def identical(actual: Tensor, expected: Tensor) -> None:
    """Assert equality of every number (0 and -0 are one number)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
