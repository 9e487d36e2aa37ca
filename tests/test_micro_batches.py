"""`rl.micro_batches`: however replies are dealt and packed, each goes through the model once, unseen by the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.types import Score, ScoredRollout
from rl.batch import Batch, collate
from rl.config import Shape, TinyConfig
from rl.micro_batches import Row, deal_rows, lay_out, sizes_of
from rl.policy import token_stats
from rl.tiny import build
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.tokenizer import train_tokenizer
from rollout.types import Finish, Prompt, Rollout, VersionSpan

LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=14)
GROUPS = st.lists(st.integers(0, 4), min_size=14, max_size=14)


def made_up(count: int, seed: int) -> tuple[int, ...]:
    """Tokens of no meaning."""
    return tuple(torch.randint(5, 500, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def batch_of(lengths: list[int], groups: list[int] | None = None) -> Batch:
    """Replies of made-up tokens, each of which answers the prompt of its group (default: one of its own), which is half as long
    as the shortest sequence of the group."""
    groups = groups or list(range(len(lengths)))
    shortest = {group: min(n for n, g in zip(lengths, groups, strict=True) if g == group) for group in groups}
    prompts = {group: made_up(shortest[group] // 2, group) for group in groups}
    scored = []
    for row, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        reply = made_up(length - len(prompts[group]), 1000 + row)
        logprobs = tuple(-token / 1000 for token in reply)
        spans = (VersionSpan(0, 0, len(reply)),)
        rollout = Rollout(Prompt(f"p{group}", prompts[group], ()), row, reply, logprobs, spans, "", Finish.STOPPED)
        scored.append(ScoredRollout(rollout, Score(0.0)))
    return collate(scored)


def tokens_of(batch: Batch, rows: Sequence[Row]) -> int:
    """Tokens that a micro-batch of `rows` sends through the model, pads aside."""
    return int((lay_out(batch, rows, sizes_of(batch)).count_RW > 0).sum())


@given(
    lengths=LENGTHS,
    groups=GROUPS,
    ranks=st.integers(1, 4),
    micro=st.integers(1, 5),
    tokens=st.sampled_from([0, 1, 40, 90]),
)
@settings(deadline=None)
def test_every_reply_is_dealt_once_and_every_rank_has_as_many_micro_batches(
    lengths: list[int], groups: list[int], ranks: int, micro: int, tokens: int
) -> None:
    """Each reply stands in one row of one rank; ranks have equally many micro-batches, and differ by a row at most; a
    micro-batch exceeds its budget only where a single reply does."""
    batch = batch_of(lengths, groups[: len(lengths)])
    dealt = deal_rows(sizes_of(batch), range(len(lengths)), ranks=ranks, micro_batch=micro, tokens=tokens)
    rows = [row for rank in dealt for part in rank for row in part]
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    assert len(dealt) == ranks and len({len(rank) for rank in dealt}) == 1
    held = [sum(len(part) for part in rank) for rank in dealt]
    assert max(held) - min(held) <= 1
    for part in itertools.chain.from_iterable(dealt):
        if tokens and part:
            assert lay_out(batch, part, sizes_of(batch)).tokens_RW.numel() <= max(tokens, max(lengths))
        else:
            assert len(part) <= micro and all(len(row) == 1 for row in part)


def test_packing_fills_rows() -> None:
    """Half as many rows where two replies fit into one: 8 of 10 tokens and 8 of 5 go into 12 rows of 10."""
    [[part]] = deal_rows(sizes_of(batch_of([10] * 8 + [5] * 8)), range(16), ranks=1, micro_batch=1, tokens=1000)
    assert len(part) == 12


def test_a_prompt_goes_through_the_model_once() -> None:
    """Four replies of 10 tokens to a prompt of 10, alone 80 tokens, are 9 shared ones and four times the prompt's last and 10;
    as many replies share it as the budget takes."""
    batch = batch_of([20] * 8, [0, 1] * 4)
    [[part]] = deal_rows(sizes_of(batch), range(8), ranks=1, micro_batch=1, tokens=1000)
    assert sorted(map(sorted, part)) == [[0, 2, 4, 6], [1, 3, 5, 7]] and tokens_of(batch, part) == 2 * (9 + 4 * 11)
    [parts] = deal_rows(sizes_of(batch), range(8), ranks=1, micro_batch=1, tokens=9 + 2 * 11)
    assert [sorted(len(row) for row in part) for part in parts] == [[2], [2], [2], [2]]


@given(lengths=LENGTHS, groups=GROUPS, tokens=st.sampled_from([0, 50, 200]), ranks=st.integers(1, 3))
@settings(deadline=None)
def test_placing_and_putting_back_is_the_identity(
    lengths: list[int], groups: list[int], tokens: int, ranks: int
) -> None:
    """What was placed in micro-batches and put back from them is what it was, on every sampled token of every reply; pads give
    0."""
    batch = batch_of(lengths, groups[: len(lengths)])
    x_BT = torch.rand(batch.mask_BT.shape) + 1
    back_BS = torch.zeros(batch.tokens_BS.shape)
    counted = 0
    for rows in itertools.chain.from_iterable(
        deal_rows(sizes_of(batch), range(len(lengths)), ranks=ranks, micro_batch=2, tokens=tokens)
    ):
        part = lay_out(batch, rows, sizes_of(batch))
        placed_RV = part.place(x_BT)
        assert placed_RV.shape == part.mask_RV.shape
        assert not placed_RV[part.count_RW[:, :-1] == 0].any()
        part.put_back(placed_RV, back_BS)
        assert torch.equal(part.tokens_RW != 0, part.count_RW > 0)
        assert torch.equal(
            batch.tokens_BS[part.reply_RW, part.place_RW][part.count_RW > 0], part.tokens_RW[part.count_RW > 0]
        )
        counted += int(part.count_RW.sum())
    assert torch.equal(torch.where(batch.mask_BT, back_BS[:, :-1], 0), torch.where(batch.mask_BT, x_BT, 0))
    assert counted == sum(lengths)


def test_a_rank_without_replies_has_a_row_of_pads() -> None:
    """Three replies over four ranks: the fourth takes part in the collectives with nothing on its mask."""
    batch = batch_of([9, 8, 7])
    dealt = deal_rows(sizes_of(batch), range(3), ranks=4, micro_batch=1, tokens=9)
    part = lay_out(batch, dealt[3][0], sizes_of(batch))
    assert part.tokens_RW.shape == (1, 2) and not part.mask_RV.any() and not part.count_RW.any()


@pytest.mark.parametrize("shape", ["mixtral", "mistral", "gpt2"])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 2, 2]])
def test_packed_is_padded(shape: Shape, groups: list[int]) -> None:
    """Log-probs, entropies, router sums and gradients of packed replies are those of each reply in a row of its own, to
    rounding: replies of one row see the prompt that they share, and not each other."""
    torch.manual_seed(0)
    tokenizer = Chat(train_tokenizer(load(CorpusConfig()).train, 600)).tokenizer
    model = build(TinyConfig(shape=shape, hidden=64, heads=2, layers=2, experts=4, context=192), tokenizer)
    lengths = [31, 17, 19, 22, 24, 8, 14]
    batch = batch_of(lengths, groups)

    def told(tokens: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        model.zero_grad()
        found_2BS = torch.zeros(2, *batch.tokens_BS.shape)
        router: Tensor | float = 0.0
        for rows in deal_rows(sizes_of(batch), range(len(lengths)), ranks=1, micro_batch=1, tokens=tokens)[0]:
            part = lay_out(batch, rows, sizes_of(batch))
            stats = token_stats(model, part.rows._replace(experts_RWLk=None), 0.7)
            loss = (stats.logprobs_RV * part.place(batch.sampled_logprobs_BT)).sum()
            (loss + stats.router_probs_LE.flatten()[:1].sum()).backward()  # of a dense model there are none
            part.put_back(stats.logprobs_RV.detach(), found_2BS[0])
            part.put_back(stats.entropy_RV.detach(), found_2BS[1])
            router = router + torch.cat([stats.router_probs_LE.flatten(), stats.router_counts_LE.flatten()]).detach()
        assert isinstance(router, Tensor)
        found_2BS[:, :, :-1] *= batch.mask_BT
        return found_2BS[0], found_2BS[1], router, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone, packed = told(0), told(90)
    assert len(deal_rows(sizes_of(batch), range(len(lengths)), ranks=1, micro_batch=1, tokens=90)[0]) < len(lengths)
    for one, other in zip(alone[:3], packed[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(alone[3], packed[3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
