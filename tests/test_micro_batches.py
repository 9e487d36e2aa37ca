"""`rl.micro_batches`: however replies are dealt and packed, each goes through the model once, unseen by the others."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.types import Score, ScoredRollout
from rl.batch import Batch, collate
from rl.config import Shape, TinyConfig
from rl.micro_batches import deal_rows, lay_out
from rl.policy import token_stats
from rl.tiny import build
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.tokenizer import train_tokenizer
from rollout.types import Finish, Prompt, Rollout, VersionSpan

LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=14)


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Replies (half of each sequence) of made-up tokens."""
    generator = torch.Generator().manual_seed(seed)
    scored = []
    for row, length in enumerate(lengths):
        ids = torch.randint(5, 500, (length,), generator=generator).tolist()
        prompt, reply = tuple(ids[: length // 2]), tuple(ids[length // 2 :])
        logprobs = tuple((-torch.rand(len(reply), generator=generator)).tolist())
        spans = (VersionSpan(0, 0, len(reply)),)
        rollout = Rollout(Prompt(f"p{row}", prompt, ()), 0, reply, logprobs, spans, "", Finish.STOPPED)
        scored.append(ScoredRollout(rollout, Score(0.0)))
    return collate(scored)


@given(lengths=LENGTHS, ranks=st.integers(1, 4), micro=st.integers(1, 5), tokens=st.sampled_from([0, 1, 40, 90]))
@settings(deadline=None)
def test_every_reply_is_dealt_once_and_every_rank_has_as_many_micro_batches(
    lengths: list[int], ranks: int, micro: int, tokens: int
) -> None:
    """Each reply stands in one row of one rank; ranks have equally many micro-batches, and differ by a row at most; a
    micro-batch exceeds its budget only where one row of the longest reply does."""
    dealt = deal_rows(lengths, range(len(lengths)), ranks=ranks, micro_batch=micro, tokens=tokens)
    rows = [row for rank in dealt for part in rank for row in part]
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    assert len(dealt) == ranks and len({len(rank) for rank in dealt}) == 1
    held = [sum(len(part) for part in rank) for rank in dealt]
    assert max(held) - min(held) <= 1
    for part in itertools.chain.from_iterable(dealt):
        if tokens:
            assert all(sum(lengths[reply] for reply in row) <= max(lengths) for row in part)
            assert len(part) * max(lengths) <= max(tokens, max(lengths))
        else:
            assert len(part) <= micro and all(len(row) == 1 for row in part)


def test_packing_fills_rows() -> None:
    """Half as many rows where two replies fit into one: 8 of 10 tokens and 8 of 5 go into 12 rows of 10."""
    [[part]] = deal_rows([10] * 8 + [5] * 8, range(16), ranks=1, micro_batch=1, tokens=1000)
    assert len(part) == 12


@given(lengths=LENGTHS, tokens=st.sampled_from([0, 50, 200]), ranks=st.integers(1, 3))
@settings(deadline=None)
def test_placing_and_putting_back_is_the_identity(lengths: list[int], tokens: int, ranks: int) -> None:
    """What was placed in micro-batches and put back from them is what it was, on every token of every reply; pads give 0."""
    batch = batch_of(lengths)
    x_BT = torch.rand(batch.mask_BT.shape) + 1
    back_BS = torch.zeros(batch.tokens_BS.shape)
    dealt = deal_rows(lengths, range(len(lengths)), ranks=ranks, micro_batch=2, tokens=tokens)
    for rows in itertools.chain.from_iterable(dealt):
        part = lay_out(batch, rows, lengths)
        placed_RV = part.place(x_BT)
        assert placed_RV.shape == part.mask_RV.shape
        assert not placed_RV[~part.real_RW[:, :-1]].any()
        part.put_back(placed_RV, back_BS)
        assert torch.equal(part.tokens_RW != 0, part.real_RW)
    real_BT = torch.arange(x_BT.shape[1]) < batch.lengths_B[:, None] - 1
    assert torch.equal(torch.where(real_BT, back_BS[:, :-1], 0), torch.where(real_BT, x_BT, 0))


def test_a_rank_without_replies_has_a_row_of_pads() -> None:
    """Three replies over four ranks: the fourth takes part in the collectives with nothing on its mask."""
    batch = batch_of([9, 8, 7])
    dealt = deal_rows([9, 8, 7], range(3), ranks=4, micro_batch=1, tokens=9)
    part = lay_out(batch, dealt[3][0], [9, 8, 7])
    assert part.tokens_RW.shape == (1, 2) and not part.mask_RV.any() and not part.real_RW.any()


@pytest.mark.parametrize("shape", ["mixtral", "mistral", "gpt2"])
def test_packed_is_padded(shape: Shape) -> None:
    """Log-probs, entropies, router sums and gradients of packed replies are those of each reply in a row of its own, to
    rounding: replies of one row do not see each other."""
    torch.manual_seed(0)
    tokenizer = Chat(train_tokenizer(load(CorpusConfig()).train, 600)).tokenizer
    model = build(TinyConfig(shape=shape, hidden=64, heads=2, layers=2, experts=4, context=192), tokenizer)
    lengths = [31, 17, 9, 22, 12, 5, 14]
    batch = batch_of(lengths)

    def told(tokens: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        model.zero_grad()
        found_2BS = torch.zeros(2, *batch.tokens_BS.shape)
        router: Tensor | float = 0.0
        for rows in deal_rows(lengths, range(len(lengths)), ranks=1, micro_batch=1, tokens=tokens)[0]:
            part = lay_out(batch, rows, lengths)
            stats = token_stats(model, part.tokens_RW, part.positions_RW, part.real_RW, part.mask_RV, 0.7)
            (stats.logprobs_RV * part.place(batch.sampled_logprobs_BT)).sum().backward()
            part.put_back(stats.logprobs_RV.detach(), found_2BS[0])
            part.put_back(stats.entropy_RV.detach(), found_2BS[1])
            router = router + torch.cat([stats.router_probs_LE.flatten(), stats.router_counts_LE.flatten()]).detach()
        assert isinstance(router, Tensor)
        return found_2BS[0], found_2BS[1], router, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone, packed = told(0), told(64)
    assert len(deal_rows(lengths, range(len(lengths)), ranks=1, micro_batch=1, tokens=64)[0]) < len(lengths)
    for one, other in zip(alone[:3], packed[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(alone[3], packed[3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
