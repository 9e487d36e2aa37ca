from __future__ import annotations

from dataclasses import replace

import pytest

from rewards.emotion import EmotionAcknowledgement, EmotionLabel, client_emotions, emotions_in
from tests.reward_replies import GOOD, prompt, reply

LABELS = """
    anxiety depression sadness anger fear shame disgust nervousness pain jealousy guilt
    grief hopelessness loneliness
"""
HERE = EmotionAcknowledgement()


def grade(text: str, emotion: str) -> float:
    return HERE.score([reply(text, prompt("...", emotion=emotion))])[0].value


@pytest.mark.parametrize("label", LABELS.split())
def test_every_label_is_understood_and_can_be_acknowledged(label: str) -> None:
    """The lexicon knows each label of ESConv and three more, and framing the label's own word scores 1."""
    assert label in emotions_in(label)
    assert grade(f"I can hear how much {label} you carry with you.", label) == 1.0


@pytest.mark.parametrize(
    ("text", "emotion", "value"),
    [
        ("You're feeling hopeless.", "depression", 1.0),
        ("It sounds like you are so anxious.", "anxiety", 1.0),
        ("That sounds frightening.", "fear", 1.0),
        ("It makes sense to feel anxious about this.", "anxiety", 1.0),
        ("I'm so sorry you're feeling so down.", "sadness", 1.0),
        ("You feel sad, why?", "sadness", 1.0),
        ("Anxiety can be treated.", "anxiety", 0.6),
        ("Are you feeling anxious?", "anxiety", 0.6),
        ("That sounds hard.", "anxiety", 0.3),
        ("I'm sorry you are going through this.", "anger", 0.3),
        ("I was depressed once too.", "depression", 0.3),
        ("Try a walk in the park.", "anxiety", 0.0),
        ("That sounds frightening.", "jealousy", 0.0),
        ("Don't be sad.", "sadness", 0.0),
        ("You shouldn't feel anxious.", "anxiety", 0.0),
        ("I'm afraid I cannot say.", "fear", 0.0),
        ("Calm down and write it down.", "depression", 0.0),
        ("You are not alone.", "loneliness", 0.0),
        ("", "sadness", 0.0),
    ],
)
def test_acknowledgement_is_graded(text: str, emotion: str, value: float) -> None:
    """Framed 1, named 0.6, kind 0.3, none 0; another emotion's word does not count, nor does talking one away."""
    assert grade(text, emotion) == value


@pytest.mark.parametrize(
    "stuffed",
    [
        "sad anxious depressed hopeless angry",
        "You are sad, anxious, angry, depressed, hopeless and lonely.",
        "Depression hopeless you feel hopeless depression sounds depression",
        "You feel sad. You feel anxious. You feel angry. You feel ashamed. You feel disgusted.",
        "You are @. It sounds like @.",
        "Hopeless?",
    ],
)
def test_a_list_of_feelings_does_not_beat_a_plain_good_sentence(stuffed: str) -> None:
    """Words of feeling without a sentence round them, or guesses at every feeling, score below one true sentence."""
    assert grade(stuffed, "depression") <= 0.3 < grade("You sound so hopeless today.", "depression")


def test_the_clients_own_words_count_as_the_label_does() -> None:
    """The emotion comes from the label, in any form of the word, and from the client's last turn; else nobody knows."""
    assert client_emotions(reply("", prompt("Hello.", emotion="Anxious"))) == {"anxiety", "nervousness"}
    assert "hopelessness" in client_emotions(reply("", prompt("I feel hopeless.")))
    assert client_emotions(reply("", prompt("I lost my keys."))) == frozenset()
    assert not HERE.applies(reply("You're feeling sad.", prompt("I lost my keys.")))


def test_the_label_that_the_policy_wrote_is_the_annotated_one_or_not() -> None:
    """1.0 for the corpus's emotion however it is spelt, 0.0 for another or none; no say without an annotation."""
    to = prompt(emotion="job anxiety")
    written = [{"emotion": "Job_anxiety"}, {"emotion": "job anxiety"}, {"emotion": "anger"}, {}]
    replies = [replace(reply(GOOD, to, k), labels=labels) for k, labels in enumerate(written)]
    assert [s.value for s in EmotionLabel().score(replies)] == [1.0, 1.0, 0.0, 0.0]
    assert EmotionLabel().applies(replies[0]) and not EmotionLabel().applies(reply(GOOD))
