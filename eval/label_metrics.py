"""Accuracy of labels, each with the majority baseline that it has to beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from eval.figures import Measured
from eval.instruments import Readings
from eval.metric import Better, Need, metric
from eval.pair import Pair
from rewards.classifiers import EmotionClass
from rewards.emotion import spelled
from rollout.types import Rollout


class EmotionReader(EmotionClass):
    """The reward's emotion head, and what it calls the corpus's emotion."""

    def label(self, rollout: Rollout) -> str:
        """The head's name of the annotated emotion; "" where it has none (jealousy)."""
        wanted = self._wanted(rollout)
        return "" if wanted is None else self._head.labels[wanted]


def _emotion(pair: Pair) -> str:
    return pair.emotion


def _act(pair: Pair) -> str:
    return pair.labels["dialogue_act"]


def _emotion_label(readings: Readings, name: str) -> Measured:
    """Share of replies before which the model wrote the corpus's emotion of the client (the context and emotion study's
    "emotion accuracy", as we read it). No label, or another, is wrong. Read it beside `emotion_majority`."""
    return _written(readings, name, "emotion", _emotion)


def _act_label(readings: Readings, name: str) -> Measured:
    """Share of replies before which the model wrote the dialogue act of the therapist's own reply (READER, Srivastava et al. 2023,
    predicts it jointly). No label, or another, is wrong. Read it beside `act_majority`."""
    return _written(readings, name, "dialogue_act", _act)


def _written(readings: Readings, name: str, label: str, wanted: Callable[[Pair], str]) -> Measured:
    right = [same_label(pair.written.get(label, ""), wanted(pair)) for pair in readings.pairs]
    return readings.ledger.mean(name, right, rate=True)


def _emotion_majority(readings: Readings, name: str) -> Measured:
    """What `emotion_label` is for whoever always writes the emotion that is most frequent among these prompts."""
    return _majority(readings, name, [spelled(_emotion(pair)) for pair in readings.pairs])


def _act_majority(readings: Readings, name: str) -> Measured:
    """What `act_label` is for whoever always writes the dialogue act that is most frequent among these prompts."""
    return _majority(readings, name, [spelled(_act(pair)) for pair in readings.pairs])


def _emotion_head(readings: Readings, name: str) -> Measured:
    """Share of replies in which a classifier (`rewards.emotion_class`; by default the shipped GoEmotions head, Demszky et al.
    2020, arXiv:2005.00547, in Ekman's grouping) sees the corpus's emotion of the client. An empty reply is wrong. Prompts
    with an emotion that the head does not know (jealousy) do not count. Read it beside `emotion_head_majority`."""
    reader = EmotionReader(readings.instruments.bench)
    rollouts = [pair.rollout for pair in readings.pairs]
    known = [reader.label(rollout) != "" for rollout in rollouts]
    found = iter(reader.score([r for r, knows in zip(rollouts, known, strict=True) if knows]))
    values = [next(found).notes["accuracy"] if knows else math.nan for knows in known]
    return readings.ledger.mean(name, values, rate=True)


def _emotion_head_majority(readings: Readings, name: str) -> Measured:
    """What `emotion_head` is for whoever always shows the most frequent of the head's emotions among these prompts."""
    reader = EmotionReader(readings.instruments.bench)
    return _majority(readings, name, [reader.label(pair.rollout) for pair in readings.pairs])


def _majority(readings: Readings, name: str, labels: Sequence[str]) -> Measured:
    """The share of the most frequent label, "" apart; of several such the first by name."""
    counts = Counter(filter(None, labels))
    best = min(counts, key=lambda label: (-counts[label], label), default="")
    values = [float(label == best) if label else math.nan for label in labels]
    return readings.ledger.mean(name, values, rate=True)


def same_label(written: str, wanted: str) -> bool:
    """Whether two labels are one (`rewards.emotion.spelled`)."""
    return spelled(written) == spelled(wanted)


_SHARE = "share of replies"
LABEL_METRICS = (
    metric(_emotion_label, "emotion_label", Need.EMOTION, Need.WRITTEN_EMOTION, better=Better.HIGHER, unit=_SHARE),
    metric(_emotion_majority, "emotion_majority", Need.EMOTION, better=Better.NEITHER, unit=_SHARE),
    metric(_emotion_head, "emotion_head", Need.EMOTION, better=Better.HIGHER, unit=_SHARE),
    metric(_emotion_head_majority, "emotion_head_majority", Need.EMOTION, better=Better.NEITHER, unit=_SHARE),
    metric(_act_label, "act_label", Need.ACT, Need.WRITTEN_ACT, better=Better.HIGHER, unit=_SHARE),
    metric(_act_majority, "act_majority", Need.ACT, better=Better.NEITHER, unit=_SHARE),
)
