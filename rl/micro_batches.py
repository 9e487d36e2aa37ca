"""How replies go through the model: a row each or packed end to end, in micro-batches balanced over ranks.

Axes: B replies of a batch, S their tokens, T = S - 1 positions (position t predicts token t + 1); R rows of a micro-batch,
W tokens of a row, V = W - 1 positions; L MoE layers, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.batch import Batch
from rl.router_replay import FREE
from rl.sequences import pack

Row = tuple[int, ...]  # the replies of one row, by their place in the batch


@dataclass(frozen=True)
class MicroBatch:
    """Replies of a batch as rows that the model reads at once.

    `positions_RW` begins at 0 in each reply, from which transformers builds a block-diagonal causal mask: replies of a row do
    not see each other. `reply_RW` and `place_RW` say which token of the batch each one is; `real_RW` is False on pads, which
    end a row.
    """

    tokens_RW: Tensor
    positions_RW: Tensor
    reply_RW: Tensor
    place_RW: Tensor
    real_RW: Tensor
    mask_RV: Tensor  # where the next token was sampled: never between two replies
    experts_RWLk: Tensor  # what the batch says of the engine's routing, FREE on pads

    def place(self, x_BT: Tensor) -> Tensor:
        """Values of the batch's positions at this micro-batch's; 0 on pads and behind the last token of a reply."""
        x_BS = torch.nn.functional.pad(x_BT, (0, 1))
        return torch.where(self.real_RW, x_BS[self.reply_RW, self.place_RW], 0)[:, :-1]

    def put_back(self, x_RW: Tensor, x_BS: Tensor) -> None:
        """Write this micro-batch's values into `x_BS`, whose replies they are; for x_RV and x_BT likewise."""
        width = x_RW.shape[1]
        real = self.real_RW[:, :width] & (self.place_RW[:, :width] < x_BS.shape[1])
        x_BS[self.reply_RW[:, :width][real], self.place_RW[:, :width][real]] = x_RW[real]


def lay_out(batch: Batch, rows: Sequence[Row], lengths: Sequence[int]) -> MicroBatch:
    """The micro-batch of `rows`. `lengths` are those of the batch's replies, prompt included; without any row it is two pads,
    since a rank without replies still takes part in the collectives."""
    width = max((sum(lengths[reply] for reply in row) for row in rows), default=2)
    shape = (max(len(rows), 1), width)
    reply_RW, place_RW = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    real_RW = torch.zeros(shape, dtype=torch.bool)
    positions_RW = torch.arange(width).repeat(shape[0], 1)
    for r, row in enumerate(rows):
        start = 0
        for reply in row:
            stop = start + lengths[reply]
            reply_RW[r, start:stop] = reply
            place_RW[r, start:stop] = torch.arange(lengths[reply])
            start = stop
        real_RW[r, :start] = True
        positions_RW[r, :start] = place_RW[
            r, :start
        ]  # pads go on counting: they belong to the last reply, which cannot see them
        positions_RW[r, start:] += lengths[row[-1]] - start
    device = batch.tokens_BS.device
    reply_RW, place_RW, real_RW = reply_RW.to(device), place_RW.to(device), real_RW.to(device)
    mask_BS = torch.nn.functional.pad(batch.mask_BT, (0, 1))
    return MicroBatch(
        tokens_RW=torch.where(real_RW, batch.tokens_BS[reply_RW, place_RW], 0),
        positions_RW=positions_RW.to(device),
        reply_RW=reply_RW,
        place_RW=place_RW,
        real_RW=real_RW,
        mask_RV=(mask_BS[reply_RW, place_RW] & real_RW)[:, :-1],
        experts_RWLk=torch.where(real_RW[:, :, None, None], batch.experts_BSLk[reply_RW, place_RW], FREE),
    )


def deal_rows(
    lengths: Sequence[int], replies: Sequence[int], *, ranks: int, micro_batch: int, tokens: int
) -> list[list[list[Row]]]:
    """Deal `replies` to ranks and micro-batches: [rank][micro-batch] -> rows; as many micro-batches on every rank.

    `tokens` 0: a row each, `micro_batch` rows at once, long with long, so that little is padding. Otherwise rows are as long as
    the longest reply, filled with further ones, and a micro-batch is as many rows as hold `tokens` tokens, at least one. The
    fullest rows are dealt first, to one rank after another, so that ranks differ by a row at most. A function of its arguments
    alone: ranks need not ask each other. A micro-batch may be empty.
    """
    ordered = sorted(replies, key=lambda reply: -lengths[reply])
    rows: list[Row] = [(reply,) for reply in ordered]
    at_once = micro_batch
    if tokens:
        capacity = lengths[ordered[0]]
        packed = [tuple(ordered[k] for k in row) for row in pack([lengths[reply] for reply in ordered], capacity)]
        rows = sorted(packed, key=lambda row: -sum(lengths[reply] for reply in row))
        at_once = max(tokens // capacity, 1)
    count = -(-len(rows) // (ranks * at_once))
    return [[rows[rank::ranks][m * at_once : (m + 1) * at_once] for m in range(count)] for rank in range(ranks)]
