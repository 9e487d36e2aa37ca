"""`rl.batch`: nothing is lost or moved between rollouts and tensors, nor between a batch and its parts.

Axes as in `rl.batch`: B rows, S tokens, T = S - 1 positions.
"""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.types import Score, ScoredRollout
from rl.advantages import last_token_B
from rl.batch import collate, split
from rollout.types import Finish, Prompt, Rollout, VersionSpan

ids = st.lists(st.integers(0, 50_000), min_size=1, max_size=8).map(tuple)  # 0 too: a token like any other


@st.composite
def scored_rollouts(draw: st.DrawFn) -> ScoredRollout:
    prompt_ids, response_ids = draw(ids), draw(ids)
    count = len(response_ids)
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=2))) if count > 1 else []
    edges = [0, *cuts, count]
    spans = tuple(VersionSpan(10 + i, a, b) for i, (a, b) in enumerate(pairwise(edges)))
    rollout = Rollout(
        prompt=Prompt("p", prompt_ids, ()),
        sample=0,
        response_ids=response_ids,
        sampled_logprobs=tuple(draw(st.lists(st.floats(-50, 0, width=32), min_size=count, max_size=count))),
        versions=spans,
        text="",
        finish=draw(st.sampled_from([Finish.STOPPED, Finish.TRUNCATED])),
    )
    return ScoredRollout(rollout, Score(draw(st.floats(-10, 10, width=32))))


many = st.lists(scored_rollouts(), min_size=1, max_size=6)


def rollout(prompt: int, response: int, finish: Finish = Finish.STOPPED) -> ScoredRollout:
    return ScoredRollout(
        Rollout(
            prompt=Prompt("p", tuple(range(1, prompt + 1)), ()),
            sample=0,
            response_ids=tuple(range(100, 100 + response)),
            sampled_logprobs=(-1.0,) * response,
            versions=(VersionSpan(3, 0, response),),
            text="",
            finish=finish,
        ),
        Score(0.5),
    )


@given(scored=many)
@settings(deadline=None)
def test_collate_then_split_is_the_identity(scored: list[ScoredRollout]) -> None:
    """Prompt ids, response ids and sampled log-probs come back exactly, row by row, in order."""
    expected = [(s.rollout.prompt.token_ids, s.rollout.response_ids, tuple(s.rollout.sampled_logprobs)) for s in scored]
    assert split(collate(scored)) == expected


@given(scored=many)
@settings(deadline=None)
def test_every_cell_is_what_its_token_says(scored: list[ScoredRollout]) -> None:
    """Position t is about token t + 1: masked, with its log-prob and version, where that is a sampled token; else 0.

    Beyond a row's length there are only pads, and the widest row has none.
    """
    batch = collate(scored)
    assert batch.rows == len(scored)
    assert batch.tokens_BS.shape[1] == int(batch.lengths_B.max())
    for row, item in enumerate(scored):
        prompt, reply = item.rollout.prompt.token_ids, item.rollout.response_ids
        length = len(prompt) + len(reply)
        assert int(batch.lengths_B[row]) == length
        assert batch.tokens_BS[row, length:].eq(0).all()
        assert float(batch.score_B[row]) == item.score.value
        assert bool(batch.unfinished_B[row]) == (item.rollout.finish is Finish.TRUNCATED and not item.score.flags)
        versions = {i: span.version for span in item.rollout.versions for i in range(span.start, span.stop)}
        for t in range(batch.mask_BT.shape[1]):
            k = t + 1 - len(prompt)  # which token of the reply position t predicts
            sampled = 0 <= k < len(reply)
            assert bool(batch.mask_BT[row, t]) == sampled
            assert float(batch.sampled_logprobs_BT[row, t]) == (item.rollout.sampled_logprobs[k] if sampled else 0)
            assert int(batch.versions_BT[row, t]) == (versions[k] if sampled else 0)
            if sampled:
                assert int(batch.tokens_BS[row, t + 1]) == reply[k]


@given(scored=many)
@settings(deadline=None)
def test_the_last_sampled_position_is_that_of_the_last_token(scored: list[ScoredRollout]) -> None:
    """A row's last sampled position predicts its last token: position length - 2."""
    batch = collate(scored)
    assert torch.equal(last_token_B(batch.mask_BT), batch.lengths_B - 2)


@given(scored=many, names=st.lists(st.sampled_from("abc"), min_size=6, max_size=6))
@settings(deadline=None)
def test_replies_to_one_prompt_have_one_number(scored: list[ScoredRollout], names: list[str]) -> None:
    """Two rows have the same group exactly where their prompts have the same id."""
    scored = [
        replace(item, rollout=replace(item.rollout, prompt=replace(item.rollout.prompt, id=name)))
        for item, name in zip(scored, names, strict=False)
    ]
    groups = collate(scored).group_B.tolist()
    for one, name in zip(groups, names, strict=False):
        assert [other == one for other in groups] == [other == name for other in names[: len(groups)]]


def test_nothing_is_written_in_place() -> None:
    """Splitting leaves the batch as it was; no field can be set."""
    batch = collate([rollout(3, 2), rollout(1, 6), rollout(2, 2, Finish.TRUNCATED)])
    before = {name: tensor.clone() for name, tensor in vars(batch).items()}
    split(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vars(batch).items())
    with pytest.raises(FrozenInstanceError):
        batch.score_B = torch.zeros(3)  # type: ignore[misc]


@given(scored=many, data=st.data())
@settings(deadline=None)
def test_a_dropped_reply_teaches_nothing_and_moves_nothing(scored: list[ScoredRollout], data: st.DataObject) -> None:
    """Its row keeps its tokens, and has nothing on the mask; every other row is what it is without the drop."""
    whole, row = collate(scored), data.draw(st.integers(0, len(scored) - 1))
    item = scored[row]
    scored[row] = replace(item, score=replace(item.score, dropped=True))
    batch, others = collate(scored), torch.arange(len(scored)) != row
    assert torch.equal(batch.tokens_BS, whole.tokens_BS) and torch.equal(batch.lengths_B, whole.lengths_B)
    for name in ("mask_BT", "sampled_logprobs_BT", "versions_BT", "unfinished_B"):
        assert not getattr(batch, name)[row].any(), name
        assert torch.equal(getattr(batch, name)[others], getattr(whole, name)[others]), name


@given(scored=many)
@settings(deadline=None)
def test_a_batch_that_travels_arrives_whole_and_is_not_copied(scored: list[ScoredRollout]) -> None:
    """Pickled with buffers out of band, as Ray does, every tensor arrives with its values and type, in the sender's bytes."""
    batch, buffers = collate(scored), list[pickle.PickleBuffer]()
    arrived = pickle.loads(pickle.dumps(batch, protocol=5, buffer_callback=buffers.append), buffers=buffers)
    assert type(arrived) is type(batch)
    for name, tensor in vars(batch).items():
        there = getattr(arrived, name)
        assert there.dtype == tensor.dtype and torch.equal(there, tensor), name
        assert there.data_ptr() == tensor.data_ptr(), name


@pytest.mark.parametrize("broken", [rollout(2, 0), rollout(2, 2, Finish.ABORTED)], ids=["empty", "aborted"])
def test_a_broken_reply_is_a_programming_error(broken: ScoredRollout) -> None:
    """Replies that no engine may return are not trained on."""
    with pytest.raises(AssertionError):
        collate([rollout(2, 2), broken])


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_log_probs_must_be_one_per_token(count: int) -> None:
    """A reply of three tokens with any other number of log-probs is refused; a single one would be broadcast."""
    item = rollout(2, 3)
    wrong = replace(item, rollout=replace(item.rollout, sampled_logprobs=(-1.0,) * count))
    with pytest.raises(AssertionError):
        collate([rollout(2, 2), wrong])
