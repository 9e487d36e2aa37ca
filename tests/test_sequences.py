"""Training sequences: kept, drawn, dealt and packed, none lost, none twice, none seen by another."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.config import Shape, TinyConfig
from rl.sequences import Rows, draw, lay_out, read_examples, shares, trained_tokens, write_examples
from rl.sft_config import SftModelConfig
from rl.tiny import build
from rl.tuning import TunedPolicy
from rollout.chat import Chat, Example
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.tokenizer import train_tokenizer
from rollout.types import Dialogue, Speaker, Turn

VOCABULARY = 300

examples = st.integers(2, 30).flatmap(
    lambda size: st.builds(
        lambda ids, mask: Example(tuple(ids), (False, *mask)),
        st.lists(st.integers(1, VOCABULARY - 1), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size - 1, max_size=size - 1),
    )
)
batches = st.lists(examples, min_size=1, max_size=25)


def numbered(count: int) -> list[Example]:
    """Examples that differ in their tokens and in their lengths."""
    return [Example((k + 1,) * (2 + k * 7 % 5), (False,) + (True,) * (1 + k * 7 % 5)) for k in range(count)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Ids, masks and order come back, also those of no examples, and a second writing replaces the first."""
    corpus = load(CorpusConfig())
    chat = Chat(train_tokenizer(corpus.train, 600))
    rendered = [example for dialogue in corpus.train for example in chat.dialogue(dialogue, 128)]
    path = tmp_path / "sequences" / "train.parquet"
    for held in (rendered, rendered[:1], []):
        write_examples(path, held)
        assert read_examples(path) == held
        assert [file.name for file in path.parent.iterdir()] == [path.name]


@given(count=st.integers(1, 12), batch=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_example_once_an_epoch(count: int, batch: int, seed: int) -> None:
    """However batches cut the stream, each run of `count` draws from an epoch's begin is all of the examples."""
    held = numbered(count)
    stream = list(chain.from_iterable(draw(held, batch, update, seed) for update in range(3 * count)))
    assert len(stream) == 3 * count * batch
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count]) == sorted(held)


def test_a_draw_is_a_function_of_its_arguments() -> None:
    """The same update of the same seed draws the same, in any order of asking; seeds and epochs differ."""
    held = numbered(20)
    forwards = [draw(held, 6, update, 3) for update in range(10)]
    assert [draw(held, 6, update, 3) for update in reversed(range(10))] == forwards[::-1]
    epochs = [draw(held, 20, update, 3) for update in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert draw(held, 20, 0, 4) != epochs[0]


@given(count=st.integers(0, 40), ranks=st.integers(1, 5), micro=st.integers(1, 6))
def test_a_batch_is_dealt_out_whole(count: int, ranks: int, micro: int) -> None:
    """Every example goes to one rank, once, and every rank has as many micro-batches, also when the batch does not divide.

    No micro-batch is above its size, and the ranks' shares differ by one example at most.
    """
    held = numbered(count)
    dealt = shares(held, ranks, micro)
    flat = [example for rank in dealt for part in rank for example in part]
    assert sorted(flat) == sorted(held)
    assert len(dealt) == ranks
    assert {len(rank) for rank in dealt} == {-(-count // (ranks * micro))}
    assert all(len(part) <= micro for rank in dealt for part in rank)
    sizes = [sum(map(len, rank)) for rank in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_long_goes_with_long() -> None:
    """Micro-batch by micro-batch the longest are taken first, so that rows of one differ little in length."""
    held = numbered(30)
    for rank in shares(held, 2, 3):
        lengths = [[len(example.token_ids) for example in part] for part in rank]
        assert all(min(a) >= max(b) for a, b in pairwise(lengths))


def unpacked(rows: Rows) -> list[Example]:
    """The sequences of a layout, found by their positions alone; pads (zeros) are dropped."""
    found = []
    for tokens_S, positions_S, mask_T in zip(*rows, strict=True):
        trained_S = [False, *mask_T.tolist()]
        begins = [k for k, position in enumerate(positions_S.tolist()) if position == 0] + [len(tokens_S)]
        for start, stop in pairwise(begins):
            ids = tuple(tokens_S[start:stop].tolist())
            assert positions_S[start:stop].tolist() == list(range(stop - start))
            mask = tuple(trained_S[start:stop])
            if any(ids):
                found.append(Example(ids, mask))
            else:
                assert not any(mask)
    return found


@given(batch=batches, capacity=st.integers(2, 80))
def test_packed_rows_decode_to_the_same_examples(batch: list[Example], capacity: int) -> None:
    """No row exceeds the capacity (unless one sequence does), and cut at positions 0 the rows are the examples."""
    rows = lay_out(batch, capacity=capacity, packed=True)
    assert rows.tokens_RS.shape[1] <= max(capacity, *(len(example.token_ids) for example in batch))
    assert sorted(unpacked(rows)) == sorted(batch)
    assert int(rows.mask_RT.sum()) == trained_tokens(batch)


@given(batch=batches)
def test_unpacked_rows_are_an_example_each(batch: list[Example]) -> None:
    """Row r is example r, padded on the right to the longest."""
    rows = lay_out(batch, capacity=1, packed=False)
    assert rows.tokens_RS.shape == (len(batch), max(len(example.token_ids) for example in batch))
    for row, example in enumerate(batch):
        assert unpacked(Rows(*(tensor[row : row + 1] for tensor in rows))) == [example]
    assert int(rows.mask_RT.sum()) == trained_tokens(batch)


def test_packing_saves_rows() -> None:
    """Sequences that fit in one row together are in one."""
    batch = [Example((1,) * size, (False,) + (True,) * (size - 1)) for size in (10, 20, 30, 40)]
    assert lay_out(batch, capacity=50, packed=True).tokens_RS.shape == (2, 50)
    assert lay_out(batch, capacity=100, packed=True).tokens_RS.shape == (1, 100)


def test_no_token_predicts_the_next_sequences_first() -> None:
    """An example whose mask begins with its first token has that token trained nowhere, alone or in company."""
    batch = [Example((k, k, k), (True, True, True)) for k in (1, 2, 3)]
    for packed in (True, False):
        rows = lay_out(batch, capacity=9, packed=packed)
        followed = rows.positions_RS[:, 1:][rows.mask_RT]
        assert followed.tolist() == [1, 2] * 3
        assert trained_tokens(batch) == 6


@pytest.mark.parametrize("packed", [True, False])
def test_a_rank_without_rows_has_a_row_of_nothing(packed: bool) -> None:
    """An empty micro-batch is a forward pass of no trained token."""
    rows = lay_out([], capacity=16, packed=packed)
    assert rows.tokens_RS.shape == (1, 2) and not rows.mask_RT.any()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["mixtral", "mistral", "gpt2"])
def policy(request: pytest.FixtureRequest) -> TunedPolicy:
    """A model whose every weight is large enough that what a token sees changes its loss."""
    shape: Shape = request.param
    torch.manual_seed(0)
    words = tuple(Turn(Speaker.CLIENT, chr(letter)) for letter in range(97, 123))
    tokenizer = train_tokenizer([Dialogue("d", words)], VOCABULARY)
    config = TinyConfig(shape=shape, hidden=64, heads=2, layers=2, experts=4, context=192)
    model = build(config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return TunedPolicy(SftModelConfig(tuning="full", dtype="float32"), lambda: copy.deepcopy(model)).eval()


def random_examples(count: int, seed: int) -> list[Example]:
    """Prompt and reply of random lengths and ids below the smallest vocabulary."""
    draws = torch.Generator().manual_seed(seed)
    held = []
    for _ in range(count):
        asked, said = (int(n) for n in torch.randint(2, 20, (2,), generator=draws))
        ids = torch.randint(5, 260, (asked + said,), generator=draws).tolist()
        held.append(Example(tuple(ids), (False,) * asked + (True,) * said))
    return held


def losses(policy: TunedPolicy, rows: Rows) -> dict[tuple[int, ...], float]:
    """The loss of each sequence of a layout: the sum over its own trained tokens, by its ids."""
    found = {}
    for row in range(len(rows.tokens_RS)):
        own = rows.positions_RS[row].tolist()
        begins = [k for k, position in enumerate(own) if position == 0] + [len(own)]
        for start, stop in pairwise(begins):
            mask_RT = torch.zeros_like(rows.mask_RT)
            mask_RT[row, start : stop - 1] = rows.mask_RT[row, start : stop - 1]
            if mask_RT.any():
                ids = tuple(rows.tokens_RS[row, start:stop].tolist())
                with torch.no_grad():
                    found[ids] = float(policy(rows.tokens_RS, rows.positions_RS, mask_RT))
    return found


def alone(policy: TunedPolicy, example: Example) -> float:
    """Minus the log-probabilities of the trained tokens, from the model's own logits for this sequence alone."""
    ids_S = torch.tensor(example.token_ids)
    with torch.no_grad():
        logprobs_TV = policy.policy(input_ids=ids_S[None]).logits[0, :-1].double().log_softmax(-1)
    trained_T = torch.tensor(example.mask[1:])
    return -float(logprobs_TV.gather(1, ids_S[1:, None]).squeeze(1)[trained_T].sum())


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_sequence_loses_the_same_in_company(policy: TunedPolicy, packed: bool) -> None:
    """Packed with others or padded beside them, each sequence's loss is that of the sequence alone."""
    held = random_examples(6, seed=1)
    rows = lay_out(held, capacity=80, packed=packed)
    assert (len(rows.tokens_RS) < len(held)) is packed
    found = losses(policy, rows)
    assert found == {example.token_ids: pytest.approx(alone(policy, example), rel=2e-5) for example in held}
    with torch.no_grad():
        together = float(policy(*rows))
    assert together == pytest.approx(sum(alone(policy, example) for example in held), rel=2e-5)


def test_a_sequence_does_not_see_its_neighbours(policy: TunedPolicy) -> None:
    """With other tokens in one packed sequence, its own loss changes and its neighbours' do not."""
    held = sorted(random_examples(4, seed=2), key=lambda example: -len(example.token_ids))
    rows = lay_out(held, capacity=192, packed=True)
    assert len(rows.tokens_RS) == 1
    before = list(losses(policy, rows).values())
    for changed, example in enumerate(held):
        others = Example(tuple(264 - token for token in example.token_ids), example.mask)
        edited = [*held[:changed], others, *held[changed + 1 :]]
        after = list(losses(policy, lay_out(edited, capacity=192, packed=True)).values())
        for k, (old, new) in enumerate(zip(before, after, strict=True)):
            assert (new == pytest.approx(old, rel=1e-5)) is (k != changed)


def test_the_comparison_would_see_a_leak(policy: TunedPolicy) -> None:
    """Without positions that begin again, the second sequence's loss is another: the two tests above can fail."""
    held = random_examples(2, seed=3)
    rows = lay_out(held, capacity=192, packed=True)
    leaking = torch.arange(rows.tokens_RS.shape[1])[None]
    with torch.no_grad():
        right, wrong = (
            float(policy(rows.tokens_RS, positions, rows.mask_RT)) for positions in (rows.positions_RS, leaking)
        )
    assert wrong != pytest.approx(right, rel=1e-3)


def test_packing_gives_the_same_gradient(policy: TunedPolicy) -> None:
    """Packed or padded, an update moves every weight the same way."""
    held = random_examples(6, seed=4)

    def gradients(packed: bool) -> dict[str, Tensor]:
        policy.zero_grad()
        policy(*lay_out(held, capacity=100, packed=packed)).backward()
        return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    padded, packed = gradients(False), gradients(True)
    policy.zero_grad()
    assert padded.keys() == packed.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


def test_trained_tokens_are_those_of_the_loss() -> None:
    """The count that a mean divides by is the number of tokens whose loss is summed, whatever the layout."""
    held = random_examples(7, seed=5)
    for packed in (True, False):
        assert int(lay_out(held, capacity=64, packed=packed).mask_RT.sum()) == trained_tokens(held)
    assert Counter(flag for example in held for flag in example.mask)[True] == trained_tokens(held)
