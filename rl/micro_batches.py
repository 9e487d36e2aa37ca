"""How replies go through the model: a row each or packed end to end, in micro-batches balanced over ranks.

Packed replies to one prompt share its tokens: the prompt goes through the model once, and each of its replies sees it and
itself. Log-probs and gradients are those of separate rows, to rounding, since a prompt's hidden states do not depend on what
follows.

Axes: B replies of a batch, S their tokens, T = S - 1 positions (position t predicts token t + 1); R rows of a micro-batch,
W tokens of a row, V = W - 1 positions; L MoE layers, k experts of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rl.batch import Batch
from rl.policy import Rows
from rl.router_replay import FREE
from rl.sequences import pack

Row = tuple[int, ...]  # the replies of one row, by their place in the batch
Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]  # (prompt ids, reply ids)


@dataclass(frozen=True)
class MicroBatch:
    """Replies of a batch as rows that the model reads at once.

    `visible_RWW` says which tokens each token sees; None where every row is one reply, and each sees all before it. `reply_RW`
    and `place_RW` say which token of the batch each one is, `count_RW` for how many replies it stands: 0 on pads, which end a
    row, and more than 1 on a prompt that replies share. Of a shared prompt the last token is each reply's own: what follows it
    is sampled.
    """

    tokens_RW: Tensor
    positions_RW: Tensor
    reply_RW: Tensor
    place_RW: Tensor
    count_RW: Tensor
    visible_RWW: Tensor | None
    mask_RV: Tensor  # where the next token was sampled: never between two replies
    experts_RWLk: Tensor  # what the batch says of the engine's routing, FREE on pads

    @property
    def rows(self) -> Rows:
        """What the model reads of it."""
        return Rows(self.tokens_RW, self.positions_RW, self.visible_RWW, self.count_RW, self.mask_RV, self.experts_RWLk)

    def place(self, x_BT: Tensor) -> Tensor:
        """Values of the batch's positions at this micro-batch's; 0 on pads and behind the last token of a reply."""
        x_BS = torch.nn.functional.pad(x_BT, (0, 1))
        return torch.where(self.count_RW > 0, x_BS[self.reply_RW, self.place_RW], 0)[:, :-1]

    def put_back(self, x_RW: Tensor, x_BS: Tensor) -> None:
        """Write this micro-batch's values into `x_BS`, whose replies they are; for x_RV and x_BT likewise. Those of a shared
        prompt go to one of its replies."""
        width = x_RW.shape[1]
        real = (self.count_RW[:, :width] > 0) & (self.place_RW[:, :width] < x_BS.shape[1])
        x_BS[self.reply_RW[:, :width][real], self.place_RW[:, :width][real]] = x_RW[real]


class Sizes(NamedTuple):
    """Of each reply of a batch: its tokens, those of its prompt, and the prompt's number: that of another reply, when it answers
    the same tokens (which the engine routed to the same experts, where it says so)."""

    lengths: list[int]
    prompt_lengths: list[int]
    prompts: list[int]


def sizes_of(batch: Batch) -> Sizes:
    """The sizes of a batch's replies."""
    tokens_BS, experts_BSLk = batch.tokens_BS.cpu().numpy(), batch.experts_BSLk.cpu().numpy()
    prompt_lengths = batch.prompt_lengths_B.tolist()
    keys = [(tokens_BS[b, :n].tobytes(), experts_BSLk[b, : n - 1].tobytes()) for b, n in enumerate(prompt_lengths)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Sizes(batch.lengths_B.tolist(), prompt_lengths, [numbers[key] for key in keys])


def lay_out(batch: Batch, rows: Sequence[Row], sizes: Sizes) -> MicroBatch:
    """The micro-batch of `rows`; replies to one prompt that stand side by side share it. Without any row it is two pads, since a
    rank without replies still takes part in the collectives."""
    laid = [[_spans(family, sizes) for family in _families(row, sizes)] for row in rows] or [[]]
    width = max(sum(span.size for family in row for span in family) for row in laid) or 2
    shape, device = (len(laid), width), batch.tokens_BS.device
    reply_RW, place_RW, count_RW, span_RW, prompt_RW = (torch.zeros(shape, dtype=torch.int64) for _ in range(5))
    for r, row in enumerate(laid):
        start = number = 0
        for family in row:
            first = number  # of the family's spans; the shared prompt, or the only reply
            for span in family:
                stop = start + span.size
                reply_RW[r, start:stop] = span.reply
                place_RW[r, start:stop] = torch.arange(span.first, span.first + span.size)
                count_RW[r, start:stop] = span.count
                span_RW[r, start:stop], prompt_RW[r, start:stop] = number, first
                start, number = stop, number + 1
        span_RW[r, start:] = prompt_RW[r, start:] = number
    positions_RW, visible_RWW = torch.arange(width).repeat(len(laid), 1), None
    if any(len(row) > 1 or len(family) > 1 for row in laid for family in row):
        sees_RWW = (span_RW[:, :, None] == span_RW[:, None]) | (prompt_RW[:, :, None] == span_RW[:, None])
        positions_RW, visible_RWW = place_RW, (sees_RWW & torch.ones(width, width, dtype=torch.bool).tril()).to(device)
    reply_RW, place_RW, count_RW = reply_RW.to(device), place_RW.to(device), count_RW.to(device)
    mask_BS, real_RW = torch.nn.functional.pad(batch.mask_BT, (0, 1)), count_RW > 0
    return MicroBatch(
        tokens_RW=torch.where(real_RW, batch.tokens_BS[reply_RW, place_RW], 0),
        positions_RW=positions_RW.to(device),
        reply_RW=reply_RW,
        place_RW=place_RW,
        count_RW=count_RW,
        visible_RWW=visible_RWW,
        mask_RV=(mask_BS[reply_RW, place_RW] & real_RW)[:, :-1],
        experts_RWLk=torch.where(real_RW[:, :, None, None], batch.experts_BSLk[reply_RW, place_RW], FREE),
    )


@dataclass(frozen=True)
class _Span:
    """Tokens of `reply` from `first` on, side by side in a row, standing for `count` replies."""

    reply: int
    first: int
    size: int
    count: int


def _spans(family: Row, sizes: Sizes) -> list[_Span]:
    """The prompt but for its last token, then the rest of each reply; a reply alone is one span."""
    if len(family) == 1:
        return [_Span(family[0], 0, sizes.lengths[family[0]], 1)]
    shared = sizes.prompt_lengths[family[0]] - 1
    rest = [_Span(reply, shared, sizes.lengths[reply] - shared, 1) for reply in family]
    return [_Span(family[0], 0, shared, len(family)), *rest]


def _tokens(row: Row, sizes: Sizes) -> int:
    return sum(span.size for family in _families(row, sizes) for span in _spans(family, sizes))


def _families(row: Row, sizes: Sizes) -> list[Row]:
    """Neighbours in `row` that answer one prompt."""
    return [tuple(held) for _, held in itertools.groupby(row, key=lambda reply: sizes.prompts[reply])]


def deal_rows(
    sizes: Sizes, replies: Sequence[int], *, ranks: int, micro_batch: int, tokens: int
) -> list[list[list[Row]]]:
    """Deal `replies` to ranks and micro-batches: [rank][micro-batch] -> rows; as many micro-batches on every rank.

    `tokens` 0: a row each, `micro_batch` rows at once, long with long, so that little is padding. Otherwise replies to one prompt
    share it, as many as stay within `tokens`; rows are as long as the longest of these families, filled with further ones, and a
    micro-batch is as many rows as hold `tokens` tokens, at least one. The fullest rows are dealt first, to one rank after
    another, so that ranks differ by a row at most. A function of its arguments alone: ranks need not ask each other. A
    micro-batch may be empty.
    """
    ordered = sorted(replies, key=lambda reply: -sizes.lengths[reply])
    rows: list[Row] = [(reply,) for reply in ordered]
    at_once = micro_batch
    if tokens:
        families = sorted(_within(ordered, tokens, sizes), key=lambda family: -_tokens(family, sizes))
        capacity = _tokens(families[0], sizes)
        packed = pack([_tokens(family, sizes) for family in families], capacity)
        rows = [tuple(itertools.chain.from_iterable(families[k] for k in row)) for row in packed]
        rows.sort(key=lambda row: -_tokens(row, sizes))
        at_once = max(tokens // capacity, 1)
    count = -(-len(rows) // (ranks * at_once))
    return [[rows[rank::ranks][m * at_once : (m + 1) * at_once] for m in range(count)] for rank in range(ranks)]


def _within(replies: Sequence[int], tokens: int, sizes: Sizes) -> list[Row]:
    """Families of replies to one prompt, each of at most `tokens` tokens, or a single reply."""
    families: list[Row] = []
    for same in _families(tuple(sorted(replies, key=lambda reply: sizes.prompts[reply])), sizes):
        family: Row = ()
        for reply in same:
            if family and _tokens((*family, reply), sizes) > tokens:
                families.append(family)
                family = ()
            family = (*family, reply)
        families.append(family)
    return families


def rows_of(pairs: Pairs) -> Rows:
    """(prompt ids, reply ids) that belong to no batch, a row each."""
    lengths_R = torch.tensor([len(prompt) + len(reply) for prompt, reply in pairs])
    positions_RW = torch.arange(int(lengths_R.max())).repeat(len(pairs), 1)
    real_RW = positions_RW < lengths_R[:, None]
    tokens_RW = torch.zeros_like(positions_RW)
    tokens_RW[real_RW] = torch.tensor([token for prompt, reply in pairs for token in (*prompt, *reply)])
    firsts_R = torch.tensor([len(prompt) - 1 for prompt, _ in pairs])
    mask_RV = (positions_RW[:, :-1] >= firsts_R[:, None]) & real_RW[:, 1:]
    return Rows(tokens_RW, positions_RW, None, real_RW.long(), mask_RV)
