"""Prompts of a step: shares that hold, no repeats, and a stream that continues where it stood."""

from __future__ import annotations

import json
import logging
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.chat import Chat
from rollout.config import CorpusConfig, PromptsConfig, SamplingConfig
from rollout.corpora import load
from rollout.prompts import PromptStream, build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import train_tokenizer
from rollout.types import Dialogue, Prompt, Speaker, Turn

RECIPES = sorted((Path(__file__).parents[1] / "rl" / "recipes").glob("*.toml"))
PPO_PROMPTS = {path.stem: table.get("prompts", {}) for path in RECIPES
               if (table := tomllib.loads(path.read_text())).get("job", "ppo") == "ppo"}  # fmt: skip


def named(source: str, count: int) -> list[Prompt]:
    return [Prompt(f"{source}/{n}", (n,), ()) for n in range(count)]


def stream(
    corpus: int = 10,
    fixed: int = 1,
    crisis: int = 4,
    *,
    fixed_share: float = 0.1,
    crisis_share: float = 0.2,
    seed: int = 0,
) -> PromptStream:
    config = PromptsConfig(fixed_share=fixed_share, crisis_share=crisis_share)
    return PromptStream(named("corpus", corpus), named("fixed", fixed), named("crisis", crisis), config, seed)


def source(prompt: Prompt) -> str:
    return prompt.id.split("/")[0]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(load(CorpusConfig()).train, 600))


counts = st.lists(st.integers(1, 20), min_size=1, max_size=20)


@settings(deadline=None)
@given(draws=counts, percent=st.tuples(st.integers(0, 50), st.integers(0, 50)), seed=st.integers(0, 99))
def test_shares_hold_at_every_moment(draws: list[int], percent: tuple[int, int], seed: int) -> None:
    """However the prompts are cut into draws, each source has given its share of all of them to within one prompt."""
    fixed_share, crisis_share = percent[0] / 100, percent[1] / 100
    mixture = stream(fixed_share=fixed_share, crisis_share=crisis_share, seed=seed)
    shares = {"fixed": fixed_share, "crisis": crisis_share, "corpus": 1 - fixed_share - crisis_share}
    given_so_far: Counter[str] = Counter()
    for count in draws:
        drawn = mixture.draw(count)
        assert len(drawn) == count
        given_so_far.update(map(source, drawn))
        for name, share in shares.items():
            assert abs(given_so_far[name] - share * given_so_far.total()) < 1


@settings(deadline=None)
@given(per_step=st.integers(1, 32), data=st.data(), seed=st.integers(0, 99))
def test_shares_hold_in_every_step_where_they_are_whole(per_step: int, data: st.DataObject, seed: int) -> None:
    """Where `per_step` times each share is a whole number, every step holds exactly that many of each source."""
    crisis = data.draw(st.integers(0, per_step))
    fixed = data.draw(st.integers(0, per_step - crisis))
    mixture = stream(fixed_share=fixed / per_step, crisis_share=crisis / per_step, seed=seed)
    for _ in range(20):
        drawn = Counter(map(source, mixture.draw(per_step)))
        assert (drawn["crisis"], drawn["fixed"], drawn["corpus"]) == (crisis, fixed, per_step - crisis - fixed)


# the study of one prompt has no other
@pytest.mark.parametrize("name", sorted(PPO_PROMPTS.keys() - {"psychologist_local"}))
def test_every_step_of_a_shipped_recipe_asks_about_a_crisis(name: str) -> None:
    """In the shipped PPO recipes each step holds one crisis prompt or more, the same number in every step."""
    config = PromptsConfig(**{**PPO_PROMPTS[name], "fixed": ("Hello.",)})
    assert (config.per_step * config.crisis_share).is_integer() and config.per_step * config.crisis_share >= 1
    assert (config.per_step * config.fixed_share).is_integer()


@settings(deadline=None)
@given(draws=counts, corpus=st.integers(1, 25), seed=st.integers(0, 99))
def test_prompts_repeat_only_when_the_pool_is_smaller_than_the_draw(draws: list[int], corpus: int, seed: int) -> None:
    """Ids are unique in a draw; a copy (`~k`) appears only when the draw takes more of a source than it holds."""
    mixture = stream(corpus, 0, 0, fixed_share=0, crisis_share=0, seed=seed)
    for count in draws:
        ids = [prompt.id for prompt in mixture.draw(count)]
        assert len(set(ids)) == count
        assert any("~" in prompt_id for prompt_id in ids) is (count > corpus)


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_every_prompt_comes_once_per_epoch(count: int) -> None:
    """Whatever the size of the draws, each ten prompts in a row from an epoch's begin are all ten, in a new order."""
    mixture = stream(10, 0, 0, fixed_share=0, crisis_share=0)
    ids = [prompt.id for _ in range(10) for prompt in mixture.draw(count)]
    epochs = [ids[start : start + 10] for start in range(0, len(ids), 10)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert all(before != after for before, after in pairwise(epochs))


def test_copies_are_numbered() -> None:
    """One fixed prompt asked three times in a draw has three ids, and the same tokens."""
    drawn = stream(fixed_share=1, crisis_share=0).draw(3)
    assert [prompt.id for prompt in drawn] == ["fixed/0", "fixed/0~2", "fixed/0~3"]
    assert len({prompt.token_ids for prompt in drawn}) == 1


@settings(deadline=None)
@given(before=counts, after=counts, seed=st.integers(0, 99))
def test_a_restored_stream_continues_undisturbed(before: list[int], after: list[int], seed: int) -> None:
    """After any draws, a fresh stream that loads the saved state (through JSON) draws what the first one draws."""
    first, second = stream(seed=seed), stream(seed=seed)
    for count in before:
        first.draw(count)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for count in after:
        assert second.draw(count) == first.draw(count)
    assert second.state_dict() == first.state_dict()


def test_a_seed_is_a_stream() -> None:
    """Equal seeds draw equally, different seeds do not."""
    one, same, other = (stream(seed=seed).draw(20) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("changed", [stream(corpus=11), stream(seed=1)], ids=["corpus", "seed"])
def test_a_state_of_other_prompts_is_refused(changed: PromptStream) -> None:
    """Positions mean nothing in another order: a changed corpus or seed cannot be resumed."""
    with pytest.raises(ValueError, match="resumes only with the prompts and the seed it began with"):
        changed.load_state_dict(stream().state_dict())


@pytest.mark.parametrize("empty", ["corpus", "fixed", "crisis"])
def test_a_source_with_a_share_holds_prompts(empty: Any) -> None:
    """A share of nothing is an error, not a silently smaller share; without a share a source may be empty."""
    with pytest.raises(ValueError, match=rf"{empty} has share 0\.\d+ and none"):
        stream(**{empty: 0})
    assert stream(corpus=0, fixed_share=0.4, crisis_share=0.6).draw(10)


def test_one_prompt_per_therapist_turn_that_answers_the_client(chat: Chat) -> None:
    """Ids count published turns from 0, the reference is the whole therapist run, the history all that was before."""
    speakers = [Speaker.THERAPIST, Speaker.CLIENT, Speaker.CLIENT, Speaker.THERAPIST, Speaker.THERAPIST, Speaker.CLIENT]
    texts = ["welcome to you", "it hurts", "a lot", "where does", "it hurt", "here"]
    turns = tuple(Turn(speaker, text) for speaker, text in zip(speakers, texts, strict=True))
    dialogue = Dialogue("own/train/7", (*turns, Turn(Speaker.THERAPIST, "I see")), {"emotion": "pain"})
    first, second = build_prompts([dialogue], chat, max_tokens=100, min_reference_words=2)
    assert (first.id, first.reference, first.emotion) == ("own/train/7#3", "where does it hurt", "pain")
    assert first.last_client_turn == "it hurts a lot"
    assert (second.id, second.reference, second.last_client_turn) == ("own/train/7#6", "I see", "here")
    assert [turn.text for turn in second.history] == ["welcome to you", "it hurts a lot", "where does it hurt", "here"]
    assert [turn.labels for turn in second.history] == [{"emotion": "pain"}] * 4
    assert second.token_ids == chat.prompt_ids(second.history, 100)
    assert build_prompts([dialogue], chat, max_tokens=100, min_reference_words=3) == [first]


def test_prompts_of_the_sample_fit_and_lead_to_their_turn(chat: Chat) -> None:
    """Every prompt is within the limit, and its id is unique and points at the turn with which its reference begins."""
    dialogues = {dialogue.id: dialogue for dialogue in load(CorpusConfig()).train}
    prompts = build_prompts(dialogues.values(), chat, max_tokens=96, min_reference_words=1)
    assert len({prompt.id for prompt in prompts}) == len(prompts) > 46
    for prompt in prompts:
        home, turn = prompt.id.split("#")
        published = dialogues[home].turns[int(turn)]
        assert published.speaker is Speaker.THERAPIST
        assert prompt.reference.startswith(published.text)
        assert len(prompt.token_ids) <= 96


def test_prompts_that_cannot_fit_are_left_out_and_counted(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """A client turn longer than the limit costs its own prompt, and the log says so."""
    turns = [(Speaker.CLIENT, "w " * 99), (Speaker.THERAPIST, "yes"), (Speaker.CLIENT, "w"), (Speaker.THERAPIST, "no")]
    dialogue = Dialogue("own/train/0", tuple(Turn(speaker, text) for speaker, text in turns))
    with caplog.at_level(logging.WARNING):
        prompts = build_prompts([dialogue], chat, max_tokens=50, min_reference_words=0)
    assert [prompt.id for prompt in prompts] == ["own/train/0#3"]
    assert "1 prompts left out" in caplog.text


def test_fixed_prompts_are_named_by_their_words(chat: Chat) -> None:
    """The default text has the documented id and no reference; two texts that would share an id are refused."""
    (prompt,) = fixed_prompts(PromptsConfig().fixed, chat, max_tokens=100)
    assert (prompt.id, prompt.reference) == ("fixed/im-feeling-depressed-and", "")
    assert prompt.last_client_turn == PromptsConfig().fixed[0]
    with pytest.raises(ValueError, match=r"prompts\.fixed must differ in their first four words"):
        fixed_prompts(["I am so sad today.", "I am so sad again."], chat, max_tokens=100)


def test_crisis_prompts_carry_their_safe_reply(chat: Chat) -> None:
    """All shipped crisis prompts are there, in their own words, with a reference and the tier of their id."""
    prompts = crisis_prompts(chat, max_tokens=200)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 24
    for prompt in prompts:
        assert prompt.id.startswith(f"crisis/{prompt.history[0].labels['tier']}-")
        assert prompt.reference
    passive = next(prompt for prompt in prompts if prompt.id == "crisis/passive-01")
    assert passive.last_client_turn in str(chat.tokenizer.decode(list(passive.token_ids)))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (PromptsConfig, {"per_step": 0}, r"prompts\.per_step must be at least 1, is 0"),
        (PromptsConfig, {"fixed_share": -0.1}, r"prompts\.fixed_share must lie in \[0, 1\], is -0.1"),
        (PromptsConfig, {"crisis_share": 1.1}, r"prompts\.crisis_share must lie in \[0, 1\], is 1.1"),
        (PromptsConfig, {"fixed_share": 0.6, "crisis_share": 0.6}, r"must not exceed 1, are 0.6 \+ 0.6; lower one"),
        (PromptsConfig, {"fixed": ()}, r"prompts\.fixed_share must be 0 when prompts\.fixed is empty, is 0.0625"),
        (PromptsConfig, {"fixed": (" ",)}, r"prompts\.fixed must hold no empty text"),
        (PromptsConfig, {"max_context_tokens": 0}, r"prompts\.max_context_tokens must be at least 1, is 0"),
        (PromptsConfig, {"min_reference_words": -1}, r"prompts\.min_reference_words must be at least 0, is -1"),
        (SamplingConfig, {"top_p": 0.9}, r"sampling\.top_p must be 1 .* truncated distribution.* are 0.9 and 0"),
        (SamplingConfig, {"top_k": 50}, r"sampling\.top_k 0: .* truncated distribution.* are 1.0 and 50"),
        (SamplingConfig, {"temperature": 0.0}, r"sampling\.temperature must be above 0, is 0.0"),
        (SamplingConfig, {"temperature": float("nan")}, r"sampling\.temperature must be above 0, is nan"),
        (SamplingConfig, {"n": 0}, r"sampling\.n must be at least 1, is 0"),
        (SamplingConfig, {"max_tokens": 0}, r"sampling\.max_tokens must be at least 1, is 0"),
    ],
)
def test_settings_name_the_knob(section: Any, values: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused before anything runs, by its dotted name, with the value it has."""
    with pytest.raises(ValueError, match=message):
        section(**values)
