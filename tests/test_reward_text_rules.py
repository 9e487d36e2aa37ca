from __future__ import annotations

import pytest

from rewards.config import LengthConfig, RepetitionConfig
from rewards.text_rules import Inquiry, Length, Repetition
from tests.reward_replies import prompt, reply


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("What has been the hardest part?", 1.0),
        ("How are you feeling about it?", 1.0),
        ("I hear you. What's been going on?", 1.0),
        ("Could you say more?", 1.0),
        ("Tell me more about that.", 1.0),
        ("It sounds like you're worried.", 0.8),
        ("You feel sad because she left.", 0.8),
        ("Have you talked to anyone about it?", 0.5),
        ("How are you today?", 0.5),
        ("How long have you felt this way?", 0.5),
        ("Why don't you calm down?", 0.5),
        ("You should go for a walk.", 0.0),
        ("So you have to try harder.", 0.0),
        ("What?", 0.0),
        ("what how tell me why", 0.0),
        ("", 0.0),
    ],
)
def test_inquiry_grades_the_best_sentence(text: str, value: float) -> None:
    """An open question is worth 1, a reflection 0.8, a closed question 0.5, and words that only look like one 0."""
    assert [s.value for s in Inquiry().score([reply(text)])] == [value]


def test_an_interrogation_is_worth_less_than_two_questions() -> None:
    """With q > 2 questions the grade is multiplied by 2 / q, and up to two cost nothing."""
    asked = "What happened next? How did it feel? What did you do? What do you need? "
    scores = Inquiry().score([reply(asked[:37]), reply(asked), reply(asked * 2)])
    assert [s.value for s in scores] == [1.0, 0.5, 0.25]


def test_length_is_a_plateau_with_linear_flanks() -> None:
    """From the edges of [low, high] the score falls by 1/band a word, stops at 0, and no words score 0 even so."""
    term = Length(LengthConfig(low=3, high=5, band=4))
    scores = term.score([reply("word " * count) for count in range(11)])
    assert [s.value for s in scores] == [0.0, 0.5, 0.75, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a b c d e f g", 1.0),  # abc bcd cde def efg
        ("a b c a b c", 0.75),  # abc bca cab abc
        ("A, b C. a b c!", 0.75),  # case and marks do not hide a repetition
        ("no no no no no no", 0.25),
        ("no no", 0.5),
        ("hopeless", 1.0),
        ("that is hard", 1.0),
        ("", 0.0),
    ],
)
def test_repetition_is_the_share_of_distinct_ngrams(text: str, value: float) -> None:
    """An only reply scores distinct n-grams / n-grams, n = 3, or half its length when that is shorter; "" scores 0."""
    assert [s.value for s in Repetition(RepetitionConfig()).score([reply(text)])] == [value]


def test_the_ngram_size_is_the_setting() -> None:
    """The same reply is judged by n-grams of the length that was set."""
    text = "a b a c a d a e"  # single words repeat, pairs do not
    of_one, of_two = (Repetition(RepetitionConfig(ngram=n)).score([reply(text)])[0].value for n in (1, 2))
    assert (of_one, of_two) == (5 / 8, 1.0)


def test_siblings_with_the_same_words_lower_each_other_and_nobody_else() -> None:
    """Among n replies to a prompt, one with m copies scores 1 - m/(n-1); replies to other prompts do not count."""
    here, there = prompt(name="a"), prompt(name="b")
    same, other = "I am here for you today", "what would help you most now"
    scores = Repetition(RepetitionConfig()).score(
        [reply(same, here, 0), reply(same.upper() + "!", here, 1), reply(other, here, 2), reply(same, there, 0)]
    )
    assert [s.value for s in scores] == [0.5, 0.5, 1.0, 1.0]
