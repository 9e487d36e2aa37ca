from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rewards.config import EncoderConfig, RewardsConfig
from rewards.encoder import SentenceEncoder
from rewards.panel import ask
from rewards.relevance import Relevance, Specificity, own_part
from rewards.types import RewardError
from rewards.workbench import Workbench
from rollout.chat import merged
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.types import Dialogue, Prompt, Rollout, Speaker, Turn
from tests.reward_cases import CASES, PROBES
from tests.reward_replies import prompt, reply

SHARED = Path(__file__).parents[2] / "shared" / "data"
BUS = "My dog died on Monday. The house is silent and I cry on the bus."
ON_THE_BUS = "Grief catches you among strangers, and at home nobody greets you. What was he like?"
SOMEBODY = "Thank you for writing. Could you say a little more about how things are?"
RECIPE = "The recipe asks for two cups of flour and a pinch of salt."


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(RewardsConfig())


@pytest.fixture(scope="module")
def relevance(bench: Workbench) -> Relevance:
    return Relevance(bench)


@pytest.fixture(scope="module")
def specificity(bench: Workbench) -> Specificity:
    return Specificity(bench)


def after(*turns: str) -> tuple[Turn, ...]:
    """A history whose last turn is the client's."""
    speakers = [Speaker.CLIENT, Speaker.THERAPIST]
    return tuple(Turn(speakers[(len(turns) - 1 - i) % 2], text) for i, text in enumerate(turns))


def longest_client_turn(dialogue: Dialogue) -> str:
    return max((t.text for t in dialogue.turns if t.speaker is Speaker.CLIENT), key=lambda text: (len(text), text))


def test_replies_are_ordered_as_a_reader_would(relevance: Relevance, specificity: Specificity) -> None:
    """What takes up this client's matter is above what suits anybody, and that above what suits nobody."""
    replies = [reply(text, prompt(BUS)) for text in (ON_THE_BUS, SOMEBODY, RECIPE)]
    for term in (relevance, specificity):
        good, anybody, nobody = (s.value for s in term.score(replies))
        assert good > 0.6 and good > anybody + 0.3 and anybody >= nobody and nobody < 0.1


def test_a_reply_to_one_client_is_worth_less_to_another(relevance: Relevance, specificity: Specificity) -> None:
    """Each good reply is more relevant and more specific to its own client than to any of the six others."""
    for term, part in ((relevance, "cosine"), (specificity, "z")):
        for case in CASES.values():
            own, *others = term.score(
                [reply(case.good, case.prompt), *(reply(case.good, c.prompt) for c in CASES.values())]
            )
            assert sum(other.parts[part] >= own.parts[part] for other in others) == 1  # itself


def test_relevance_is_its_equation(relevance: Relevance) -> None:
    """For a reply that copies nothing, clip((c - 0.1) / 0.3) of the mean cosine with the last turn and the history."""
    history = after("I moved here in May.", "How is it?", "I know nobody, and the evenings are long.")
    text = "That must be a heavy change. What did you leave behind?"
    (score,) = relevance.score([reply(text, Prompt("p", (1,), history))])
    newest_first = "I know nobody, and the evenings are long.\nHow is it?\nI moved here in May."
    said, last, whole = SentenceEncoder(EncoderConfig()).embed([text, history[-1].text, newest_first])
    cosine = float(said @ last + said @ whole) / 2
    assert 0.1 < cosine < 0.4
    assert score.value == pytest.approx((cosine - 0.1) / 0.3, abs=1e-5)
    assert score.parts == pytest.approx({"cosine": cosine, "credit": 1.0}, abs=1e-5)


def test_specificity_is_its_equation_without_the_clients_own_words(specificity: Specificity) -> None:
    """clip(z / 3) of the standard score among the sample's longest client turns, less one that this client said."""
    turns = [longest_client_turn(dialogue) for split in load(CorpusConfig()).splits.values() for dialogue in split]
    assert len(turns) == 64
    own, *others = turns
    text = "That is a great deal for one person to hold. What was the hardest hour?"
    (score,) = specificity.score([reply(text, prompt(own))])
    said, last, *bank = SentenceEncoder(EncoderConfig()).embed([text, own, *others])
    strangers = [float(said @ vector) for vector in bank]
    mean = sum(strangers) / 63
    std = (sum((x - mean) ** 2 for x in strangers) / 62) ** 0.5
    z = (float(said @ last) - mean) / std
    assert score.parts["z"] == pytest.approx(z, abs=1e-3)
    assert score.value == pytest.approx(min(1.0, max(0.0, z / 3)), abs=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("probe", ["echo", "echo turned round", "shuffled echo", "echo of the history", "nothing"])
def test_who_hands_back_the_clients_words_answers_nothing(
    relevance: Relevance, specificity: Specificity, probe: str, case: str
) -> None:
    """An echo scores exactly 0, whole, with "I" and "you" exchanged, or in another order; so does an empty reply."""
    echo = reply(PROBES[probe](case), CASES[case].prompt)
    assert [term.score([echo])[0].value for term in (relevance, specificity)] == [0.0, 0.0]


def test_an_echo_adds_nothing_to_a_reply(relevance: Relevance, specificity: Specificity) -> None:
    """A reply behind an echo of the client's turn is read without the echo, and earns no more than alone."""
    for term in (relevance, specificity):
        for case in CASES.values():
            alone, behind = term.score(
                [reply(case.good, case.prompt), reply(f"{case.prompt.last_client_turn} {case.good}", case.prompt)]
            )
            assert behind.value <= alone.value + 1e-6


def test_four_words_in_a_row_are_copied_and_three_are_not() -> None:
    """Runs of four or more words are cut, however they are typed, turned round or not; shorter ones stay, as typed."""
    history = after("I can't get out of bed, and my sister laughs.")
    for text, left in (
        ("So you CANT GET OUT of bed? What, then, would help?", "So What, then, would help?"),
        ("And your sister laughs at what you tell her.", "at what you tell her."),
        ("Getting out of bed is hard, isn't it?", "Getting out of bed is hard, isn't it?"),
    ):  # fmt: skip
        assert own_part(text, history)[0] == left


@pytest.mark.parametrize(
    ("text", "credit"),
    [
        ("What was the dog called?", 1 / 2 / 0.3),  # dog, called: one is new
        ("Tears, bus, house, dog, silent, Monday.", 1 / 6 / 0.3 * (1 / 6) / 0.3),  # tears of six; no function word
        ("grief loss sorrow mourning tears pain ache hurt heartbreak longing", 1 / 10 / 0.3),
        ("Losing him hurts.", 1.0),
        ("You are so right.", 1.0),  # no content word, none copied
        ("Dog house. Bus house.", 0.0),
        ("", 0.0),
        ("?!", 0.0),
    ],
)
def test_credit_by_hand(text: str, credit: float) -> None:
    """min(1, new / 0.3) * min(1, prose / 0.3): new content words, and function words plus one, as shares."""
    assert own_part(text, after(BUS))[1] == pytest.approx(min(1.0, credit))


def test_what_was_said_long_ago_is_cut_before_what_was_said_last(relevance: Relevance) -> None:
    """In a history beyond the encoder's length the oldest turns do not matter, and the newest do."""
    filler = [f"We talked about the garden and the weather for a while, part {i}." for i in range(30)]
    scores = relevance.score(
        [
            reply(ON_THE_BUS, Prompt("p", (1,), after(first, "Yes?", *filler, middle, "I see.", BUS)))
            for first, middle in (
                ("Hello.", "All is well."),
                ("My cat sings.", "All is well."),
                ("Hello.", "My cat sings."),
            )
        ]
    )
    plain, old, new = (s.parts["cosine"] for s in scores)
    assert plain == old != new


def test_both_apply_exactly_where_the_client_has_spoken(relevance: Relevance, specificity: Specificity) -> None:
    """A session that the therapist opens, or a client's turn without a word, gives nothing to answer."""
    opened = Prompt("p", (1,), (Turn(Speaker.THERAPIST, "Welcome."),))
    for term in (relevance, specificity):
        for text in ("", ON_THE_BUS, BUS):
            asked = [term.applies(reply(text, to)) for to in (opened, prompt(" ... "), prompt("No."), prompt(BUS))]
            assert asked == [False, False, True, True]


def some_replies() -> list[Rollout]:
    cases = list(CASES.values())[:4]
    return [reply(text, case.prompt, k) for case in cases for k, text in enumerate((case.good, BUS, ""))]


@pytest.mark.parametrize("kind", [Relevance, Specificity])
def test_scores_follow_the_order_of_the_call(kind: type[Relevance | Specificity]) -> None:
    """A permuted call gives the permuted scores, bit for bit."""
    bench = Workbench(RewardsConfig())
    term, replies = kind(bench), some_replies()
    order = random.Random(5).sample(range(len(replies)), len(replies))
    straight = term.score(replies)
    bench.clear()
    assert term.score([replies[i] for i in order]) == [straight[i] for i in order]


@pytest.mark.parametrize("kind", [Relevance, Specificity])
def test_scores_are_a_function_of_the_call_alone(kind: type[Relevance | Specificity]) -> None:
    """An actor that has read and scored other texts, before and after the term was built, scores bit for bit the same."""
    seasoned, fresh = Workbench(RewardsConfig()), Workbench(RewardsConfig())
    seasoned.encoder.embed([longest_client_turn(dialogue) for dialogue in load(CorpusConfig()).test])
    term = kind(seasoned)
    for one in some_replies():
        term.score([one])
        seasoned.clear()
    assert term.score(some_replies()) == kind(fresh).score(some_replies())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data (ESConv)")
def test_supporters_answer_their_own_clients(relevance: Relevance, specificity: Specificity) -> None:
    """Of ESConv's replies both terms put three in four above the same words said to the client of another dialogue."""
    dialogues = load(CorpusConfig(format="esconv", path=str(SHARED / "esconv"))).test
    pairs = []
    for dialogue in random.Random(7).sample(dialogues, 50):
        turns = merged(dialogue.turns)
        at = next(i for i in range(5, len(turns)) if turns[i].speaker is Speaker.THERAPIST and len(turns[i].text) > 40)
        pairs.append((Prompt(dialogue.id, (1,), turns[:at]), turns[at].text))
    foreign = [pairs[i - 1][1] for i in range(len(pairs))]
    for term in (relevance, specificity):
        own = torch.tensor([s.value for s in term.score([reply(text, to) for to, text in pairs])])
        other = torch.tensor(
            [s.value for s in term.score([reply(t, to) for (to, _), t in zip(pairs, foreign, strict=True)])]
        )
        above = (own > other).double() + (own == other).double() / 2
        assert float(above.mean()) > 0.75


@pytest.mark.parametrize("kind", [Relevance, Specificity])
def test_an_encoder_that_breaks_is_refused_and_not_paid(kind: type[Relevance | Specificity]) -> None:
    """A vector that is not a number gives a score that is not one, which the panel refuses by the term's name."""
    bench = Workbench(RewardsConfig())
    term = kind(bench)
    with torch.no_grad():
        next(bench.encoder._model.parameters()).fill_(float("nan"))
    with pytest.raises(RewardError, match="broken must give a value in"):
        ask("broken", term, [reply(ON_THE_BUS, prompt(BUS))])
