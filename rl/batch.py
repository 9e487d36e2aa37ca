"""From scored rollouts to tensors and back.

Axes: B rows (replies), S tokens of prompt + reply, T = S - 1 positions, position t predicting token t + 1. Rows are
right-padded, so that a causal model needs no attention mask. L MoE layers, k experts of each token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.types import ScoredRollout
from rl.router_replay import FREE
from rollout.types import Finish


@dataclass(frozen=True)
class Batch:
    """What was sampled and how it was scored. `mask_BT` marks the positions whose next token the policy sampled."""

    tokens_BS: Tensor  # int64, 0 on pads
    lengths_B: Tensor  # int64, tokens of each row
    mask_BT: Tensor  # bool
    sampled_logprobs_BT: Tensor  # nats, as sampled; 0 off the mask
    versions_BT: Tensor  # int64, policy version of each sampled token; 0 off the mask
    score_B: Tensor
    unfinished_B: Tensor  # bool: the token budget cut the reply short, and nothing in it was flagged so far
    group_B: Tensor  # int64: replies to one prompt have one number
    experts_BSLk: Tensor  # int16, the engine's choice or router_replay.FREE; [B, S, 0, 0] where engines do not say it

    @property
    def rows(self) -> int:
        return self.tokens_BS.shape[0]


@dataclass(frozen=True)
class Experience(Batch):
    """A batch with everything PPO's update needs, fixed before its first epoch."""

    logprobs_BT: Tensor  # learner's log-probs before the update
    reference_logprobs_BT: Tensor
    values_BT: Tensor  # [B, 0] where the estimator needs no critic, and so are the returns
    weights_BT: Tensor  # truncated importance weights engine -> learner
    advantages_BT: Tensor
    returns_BT: Tensor
    token_share_LE: Tensor  # share of routing slots per layer and expert; [0, 0] for a dense model


@dataclass(frozen=True)
class UpdateReport:
    """What one step's update did: metrics by name."""

    metrics: Mapping[str, float]


def collate(scored: Sequence[ScoredRollout]) -> Batch:
    """Pad scored rollouts into a batch, one row each, in order (`split` is the inverse). A reply that was dropped has no
    token on the mask: it teaches nothing.

    An aborted reply, or one without tokens or a log-prob for each, is a programming error of the engine's contract.
    """
    assert all(s.rollout.finish is not Finish.ABORTED and s.rollout.response_ids for s in scored)
    assert all(len(s.rollout.sampled_logprobs) == len(s.rollout.response_ids) for s in scored)  # one would be broadcast
    sequences = [(*s.rollout.prompt.token_ids, *s.rollout.response_ids) for s in scored]
    width = max(map(len, sequences))
    tokens_BS = torch.zeros(len(scored), width, dtype=torch.int64)
    mask_BT = torch.zeros(len(scored), width - 1, dtype=torch.bool)
    logprobs_BT = torch.zeros(len(scored), width - 1)
    choices = next((s.rollout.routing.shape[1:] for s in scored if s.rollout.routing.experts), (0, 0))
    experts_BSLk = torch.full((len(scored), width, *choices), FREE, dtype=torch.int16)
    versions_BT = torch.zeros(len(scored), width - 1, dtype=torch.int64)
    for row, (item, sequence) in enumerate(zip(scored, sequences, strict=True)):
        rollout = item.rollout
        start, stop = len(rollout.prompt.token_ids) - 1, len(sequence) - 1
        tokens_BS[row, : len(sequence)] = torch.tensor(sequence)
        if rollout.routing.experts:
            assert rollout.routing.shape == (stop, *choices), (rollout.routing.shape, stop, choices)
            chosen = torch.frombuffer(bytearray(rollout.routing.experts), dtype=torch.int16)
            experts_BSLk[row, :stop] = chosen.view(rollout.routing.shape)
        if item.score.dropped:
            continue
        mask_BT[row, start:stop] = True
        logprobs_BT[row, start:stop] = torch.tensor(rollout.sampled_logprobs)
        for span in rollout.versions:
            versions_BT[row, start + span.start : start + span.stop] = span.version
    numbers = {item.rollout.prompt.id: number for number, item in enumerate(scored)}
    return Batch(
        tokens_BS=tokens_BS,
        lengths_B=torch.tensor([len(sequence) for sequence in sequences]),
        mask_BT=mask_BT,
        sampled_logprobs_BT=logprobs_BT,
        versions_BT=versions_BT,
        score_B=torch.tensor([item.score.value for item in scored]),
        unfinished_B=torch.tensor(
            [s.rollout.finish is Finish.TRUNCATED and not s.score.flags and not s.score.dropped for s in scored]
        ),
        group_B=torch.tensor([numbers[item.rollout.prompt.id] for item in scored]),
        experts_BSLk=experts_BSLk,
    )


def split(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]]:
    """(prompt ids, response ids, sampled log-probs) of each row."""
    rows = []
    for row in range(batch.rows):
        mask_T = batch.mask_BT[row]
        first = int(mask_T.nonzero()[0]) + 1
        tokens = tuple(batch.tokens_BS[row, : int(batch.lengths_B[row])].tolist())
        rows.append((tokens[:first], tokens[first:], tuple(batch.sampled_logprobs_BT[row][mask_T].tolist())))
    return rows
