"""PPO's losses as pure functions.

Axes: B sequences, T token positions; `mask_BT` is True on sampled tokens. Every loss is a *sum* over sampled tokens
divided by `tokens`, the count over the whole global minibatch: shards, micro-batches and paddings of one minibatch add
up to one loss, however it was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Average = Literal["token", "reply", "budget"]
_MAX_LOG_RATIO = 20.0  # exp overflows float32 at 88, and an infinite ratio makes NaN of a clipped gradient


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` carries the gradient; the rest is detached: share of clipped tokens, largest ratio, KL(old || new) in nats
    per token estimated by (ratio - 1) - log ratio. Sums over `tokens`, but for `ratio_max`."""

    loss: Tensor
    clip_fraction: Tensor
    ratio_max: Tensor
    kl: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """`loss` carries the gradient; `clip_fraction` is detached."""

    loss: Tensor
    clip_fraction: Tensor


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
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), weighted per token.

        rho = exp(logprob - old logprob)
        L   = -sum w * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) / tokens

    `dual_clip` c > 1 bounds the objective from below by c * A where A < 0 (Ye et al. 2020, arXiv:1912.09729).
    """
    log_ratio_BT = torch.where(mask_BT, logprobs_BT - old_logprobs_BT, 0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    advantages_BT = torch.where(mask_BT, advantages_BT, 0)
    plain_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    objective_BT = torch.minimum(plain_BT, clipped_BT)
    if dual_clip is not None:
        bounded_BT = torch.maximum(objective_BT, dual_clip * advantages_BT)
        objective_BT = torch.where(advantages_BT < 0, bounded_BT, objective_BT)
    weights_BT = torch.where(mask_BT, weights_BT, 0)
    with torch.no_grad():
        clip_fraction = ((clipped_BT < plain_BT) & mask_BT).sum() / tokens
        ratio_max = torch.where(mask_BT, ratio_BT, 0).max() if mask_BT.numel() else ratio_BT.new_zeros(())
        kl = torch.where(mask_BT, torch.expm1(log_ratio_BT) - log_ratio_BT, 0).sum() / tokens
    return PolicyLoss(-(weights_BT * objective_BT).sum() / tokens, clip_fraction, ratio_max, kl)


def reply_weights(mask_BT: Tensor, per: Average, *, budget: int) -> Tensor:
    """Weights of tokens that make the mean over a minibatch's tokens another average of its replies; 0 off the mask.

        "token":  1                           every token weighs the same: long replies weigh more
        "reply":  tokens / (replies * T_i)    mean over replies of the mean over a reply's T_i tokens (GRPO, eq. 3)
        "budget": tokens / (replies * budget) mean over replies of the sum over a reply's tokens, divided by a constant, the
                                              longest reply there can be (Dr. GRPO, section 3.2)

    `tokens` and `replies` count what is on the mask.
    """
    weights_BT = mask_BT.float()
    if per == "token":
        return weights_BT
    length_B = mask_BT.sum(1)
    each = length_B.sum() / (length_B > 0).sum().clamp_min(1)
    return weights_BT * each / (length_B.clamp_min(1)[:, None] if per == "reply" else budget)


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, tokens: float, clip: float | None
) -> ValueLoss:
    """Clipped squared error of the critic (Schulman et al. 2017, as in the authors' code).

    L = sum max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / (2 * tokens)
    """
    values_BT = torch.where(mask_BT, values_BT, 0)
    returns_BT = torch.where(mask_BT, returns_BT, 0)
    error_BT = (values_BT - returns_BT).square()
    if clip is None:
        return ValueLoss(0.5 * error_BT.sum() / tokens, error_BT.new_zeros(()))
    old_values_BT = torch.where(mask_BT, old_values_BT, 0)
    clipped_BT = torch.clamp(values_BT, old_values_BT - clip, old_values_BT + clip)  # old + (V - old) would round
    clipped_error_BT = (clipped_BT - returns_BT).square()
    clip_fraction = ((clipped_error_BT > error_BT) & mask_BT).sum() / tokens
    return ValueLoss(0.5 * torch.maximum(error_BT, clipped_error_BT).sum() / tokens, clip_fraction.detach())


def importance_weights(
    learner_logprobs_BT: Tensor, sampled_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float | None
) -> Tensor:
    """Truncated importance weights min(exp(learner - sampled), cap) between the learner's and the engine's log-probs of
    the sampled tokens (Ionides 2008; Espeholt et al. 2018, arXiv:1802.01561). `cap` None: all ones. 0 off the mask.
    """
    if cap is None:
        return mask_BT.to(learner_logprobs_BT.dtype)
    log_ratio_BT = torch.where(mask_BT, learner_logprobs_BT - sampled_logprobs_BT, 0)
    return torch.where(mask_BT, log_ratio_BT.exp().clamp_max(cap), 0)


def importance_mask(
    learner_logprobs_BT: Tensor, sampled_logprobs_BT: Tensor, mask_BT: Tensor, *, low: float, high: float
) -> Tensor:
    """The sampled tokens whose ratio exp(learner - sampled) lies in [low, high]: the others, too far from the policy that
    sampled them, do not train it (IcePop; Ling Team 2025, arXiv:2510.18855). Bool, False off the mask.
    """
    ratio_BT = torch.where(mask_BT, learner_logprobs_BT - sampled_logprobs_BT, 0).exp()
    return mask_BT & (ratio_BT >= low) & (ratio_BT <= high)


def entropy_bonus(entropy_BT: Tensor, mask_BT: Tensor, *, tokens: float) -> Tensor:
    """Mean entropy of the policy over sampled tokens, nats."""
    return torch.where(mask_BT, entropy_BT, 0).sum() / tokens


def load_balancing_loss(router_probs_LE: Tensor, token_share_LE: Tensor) -> Tensor:
    """Switch Transformer's auxiliary loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4), mean over layers.

        E * sum_e f_e * P_e

    `token_share_LE` f: share of routing slots that expert e of layer l received, a constant. `router_probs_LE` P: mean
    router probability. With f fixed, the loss is linear in P: micro-batches and shards add up exactly, which the form
    of transformers (f from each micro-batch) does not.
    """
    return router_probs_LE.shape[1] * (token_share_LE.detach() * router_probs_LE).sum(1).mean()
