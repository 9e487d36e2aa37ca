"""From scored rollouts to tensors and back.

Axes: B rows (replies), S tokens of prompt + reply, T = S - 1 positions, position t predicting token t + 1. Rows are
right-padded, so that a causal model needs no attention mask. L MoE layers, k experts of each token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    prompt_lengths_B: Tensor  # int64, tokens of each row's prompt
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Tensors travel as NumPy arrays, whose memory Ray does not copy: all ranks of a node read the same bytes.

        What arrives is read-only memory. Nobody notices, since batches are never written in place.
        """
        return _arrived, (type(self), {name: t.detach().contiguous().numpy() for name, t in vars(self).items()})


@dataclass(frozen=True)
class Experience(Batch):
    """A batch with everything PPO's update needs, fixed before its first epoch."""

    logprobs_BT: Tensor  # learner's log-probs before the update; [B, 0] where the update itself says them, and so are the weights
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
    rollouts = [item.rollout for item in scored]
    taught = [item.rollout for item in scored if not item.score.dropped]
    assert all(r.finish is not Finish.ABORTED and r.response_ids for r in rollouts)
    assert all(len(r.sampled_logprobs) == len(r.response_ids) for r in rollouts)  # or they would slip into the next row
    assert all(sum(s.stop - s.start for s in r.versions) == len(r.response_ids) for r in rollouts)
    prompt_B = torch.tensor([len(r.prompt.token_ids) for r in rollouts])
    lengths_B = prompt_B + torch.tensor([len(r.response_ids) for r in rollouts])
    dropped_B = torch.tensor([item.score.dropped for item in scored])
    positions_S = torch.arange(int(lengths_B.max()))
    # column by column: row by row takes four times as long, seconds in a step of millions of tokens
    tokens_BS = torch.zeros(len(scored), len(positions_S), dtype=torch.int64)
    tokens = _column((ids for r in rollouts for ids in (r.prompt.token_ids, r.response_ids)), np.int64)
    tokens_BS.masked_scatter_(positions_S < lengths_B[:, None], tokens)
    positions_T = positions_S[:-1]
    mask_BT = (positions_T >= prompt_B[:, None] - 1) & (positions_T < lengths_B[:, None] - 1) & ~dropped_B[:, None]
    logprobs_BT = torch.zeros(mask_BT.shape)
    logprobs_BT.masked_scatter_(mask_BT, _column((r.sampled_logprobs for r in taught), np.float32))
    versions_BT = torch.zeros(mask_BT.shape, dtype=torch.int64)
    spans = [span for r in taught for span in r.versions]
    version_N, tokens_N = np.array([(s.version, s.stop - s.start) for s in spans], np.int64).reshape(-1, 2).T
    versions_BT.masked_scatter_(mask_BT, torch.from_numpy(np.repeat(version_N, tokens_N)))
    choices = next((r.routing.shape[1:] for r in rollouts if r.routing.experts), (0, 0))
    experts_BSLk = torch.full((len(scored), len(positions_S), *choices), FREE, dtype=torch.int16)
    for row, r in enumerate(rollouts):
        if r.routing.experts:
            read = len(r.prompt.token_ids) + len(r.response_ids) - 1
            assert r.routing.shape == (read, *choices), (r.routing.shape, read, choices)
            chosen = torch.frombuffer(bytearray(r.routing.experts), dtype=torch.int16)
            experts_BSLk[row, :read] = chosen.view(r.routing.shape)
    numbers = {r.prompt.id: number for number, r in enumerate(rollouts)}
    return Batch(
        tokens_BS=tokens_BS,
        lengths_B=lengths_B,
        prompt_lengths_B=prompt_B,
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


def _column(rows: Iterable[Sequence[float]], dtype: type[np.generic]) -> Tensor:
    """All rows, one behind the other."""
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *(np.asarray(row, dtype) for row in rows)]))


def split(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]]:
    """(prompt ids, response ids, sampled log-probs) of each row."""
    rows = []
    for row in range(batch.rows):
        mask_T = batch.mask_BT[row]
        first = int(mask_T.nonzero()[0]) + 1
        tokens = tuple(batch.tokens_BS[row, : int(batch.lengths_B[row])].tolist())
        rows.append((tokens[:first], tokens[first:], tuple(batch.sampled_logprobs_BT[row][mask_T].tolist())))
    return rows


def _arrived(kind: type[Batch], arrays: Mapping[str, np.ndarray]) -> Batch:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return kind(**{name: torch.from_numpy(array) for name, array in arrays.items()})
