"""From scores to advantages: pure functions on padded, possibly gapped, batches.

Axes: B sequences, T token positions (position t predicts token t + 1). `mask_BT` is True on tokens the policy sampled.
A mask may have gaps (several replies in one dialogue); values and advantages carry over them, as if each row were
compressed to its sampled tokens. Log-probs and KL are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

KlKind = Literal["k1", "k2", "k3"]


def gae(
    rewards_BT: Tensor, values_BT: Tensor, last_value_B: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma * lam * A_{t+1}

    t + 1 is the next *sampled* token. `last_value_B` is V beyond the last one: 0 where the policy ended its turn, the
    critic's estimate where the token budget cut the reply short. Returns (advantages_BT, returns_BT), returns being
    advantages + values; both are 0 off the mask.
    """
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = last_value_B.to(values_BT.dtype)
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        sampled_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BT[:, t] = torch.where(sampled_B, advantage_B, 0)
        next_advantage_B = torch.where(sampled_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(sampled_B, values_BT[:, t], next_value_B)
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0)


def group_relative(score_B: Tensor, group_B: Tensor, counted_B: Tensor, *, scaled: bool, eps: float = 1e-4) -> Tensor:
    """A reply against the others to its prompt (GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + eps)        mean and std over the group of i

    Not `scaled`, without the division: it weighs groups by how little they differ (Dr. GRPO: Liu et al. 2025,
    arXiv:2503.20783, section 3.1). The standard deviation is that of a sample (n - 1). Replies that are not counted take no
    part and get 0; so does a reply alone in its group.
    """
    same_BB = (group_B[:, None] == group_B) & counted_B
    count_B = same_BB.sum(1).clamp_min(1)
    centred_B = score_B - torch.where(same_BB, score_B, 0).sum(1) / count_B
    if scaled:
        squares_B = torch.where(same_BB, centred_B.square(), 0).sum(1)
        centred_B = centred_B / ((squares_B / (count_B - 1).clamp_min(1)).sqrt() + eps)
    return torch.where(counted_B & (count_B > 1), centred_B, 0)


def leave_one_out(score_B: Tensor, group_B: Tensor, counted_B: Tensor) -> Tensor:
    """A reply against the mean of the *other* replies to its prompt (RLOO: Ahmadian et al. 2024, arXiv:2402.14740, eq. 6).

        A_i = r_i - mean of r_j over the group's other replies j

    Replies that are not counted take no part and get 0; so does a reply alone in its group.
    """
    same_BB = (group_B[:, None] == group_B) & counted_B
    others_B = same_BB.sum(1) - 1
    total_B = torch.where(same_BB, score_B, 0).sum(1) - score_B
    return torch.where(counted_B & (others_B > 0), score_B - total_B / others_B.clamp_min(1), 0)


def kl_penalty(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor, *, kind: KlKind) -> Tensor:
    """Per-token estimate of KL(policy || reference) on tokens sampled from the policy (Schulman 2020,
    "Approximating KL divergence"), with l = log policy - log reference:

        k1 = l                  unbiased, can be negative
        k2 = l^2 / 2            biased, low variance
        k3 = exp(-l) - 1 + l    unbiased, never negative; of an l within +-20, since an infinite one has no gradient

    Returns nats per token, 0 off the mask.
    """
    log_ratio_BT = torch.where(mask_BT, logprobs_BT - reference_logprobs_BT, 0)
    match kind:
        case "k1":
            return log_ratio_BT
        case "k2":
            return log_ratio_BT.square() / 2
        case "k3":
            bounded_BT = log_ratio_BT.clamp(-20, 20)
            return torch.expm1(-bounded_BT) + bounded_BT


def last_token_B(mask_BT: Tensor) -> Tensor:
    """Index of each row's last sampled token; 0 for a row without any (check `mask_BT.any(1)`)."""
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, positions_T, 0).amax(1) if mask_BT.shape[1] else mask_BT.sum(1)


def shape_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """Token rewards of PPO from a score of the whole reply (Ziegler et al. 2019, arXiv:1909.08593, eq. 2).

    r_t = -kl_coef * kl_t + [t is the last sampled token] * score
    """
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    is_last_BT = mask_BT & (positions_T == last_token_B(mask_BT)[:, None])
    return torch.where(mask_BT, -kl_coef * kl_BT, 0) + torch.where(is_last_BT, score_B[:, None].to(kl_BT.dtype), 0)


def masked_moments(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(count, sum, sum of squares) of x over the mask, float64 [3]. The moments of shards add up to those of the whole."""
    x_N = x_BT[mask_BT].double()
    return torch.stack([torch.tensor(float(x_N.numel()), dtype=torch.float64, device=x_N.device), x_N.sum(), x_N @ x_N])


def whiten(x_BT: Tensor, mask_BT: Tensor, moments_3: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps) with the (global) population moments; 0 off the mask."""
    count, total, squares = moments_3.unbind()
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return torch.where(mask_BT, ((x_BT.double() - mean) / (variance + eps).sqrt()).to(x_BT.dtype), 0)


@dataclass(frozen=True)
class KlController:
    """Coefficient of the KL penalty: fixed, or adaptive (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

        error  = clip(kl / target - 1, -0.2, 0.2)
        coef' = coef * (1 + error * replies / horizon)

    `target` is the wanted KL per reply in nats (None: the coefficient is fixed), `horizon` a number of replies.
    """

    coef: float
    target: float | None
    horizon: int

    def after(self, kl: float, replies: int) -> KlController:
        """The controller after `replies` replies whose mean KL was `kl` nats each."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coef=self.coef * (1 + error * replies / self.horizon))
