"""Terms that ask a fitted head about the reply: its emotion, its dialogue act, its empathy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.head_features import exchange_features
from rewards.heads import Head
from rewards.types import Score
from rewards.workbench import Workbench
from rollout.types import Rollout

# What the emotions of ESConv (first) and MESC are called among Ekman's, as GoEmotions maps its own. Jealousy is none of them.
_EKMAN: Mapping[str, str] = {
    "anxiety": "fear",
    "nervousness": "fear",
    "depression": "sadness",
    "shame": "sadness",  # GoEmotions: embarrassment
    "guilt": "sadness",  # GoEmotions: remorse
    "pain": "sadness",
    "happiness": "joy",
}
_LEVELS = ("0", "1", "2")
MECHANISMS = ("emotional_reactions", "interpretations", "explorations")


class EmotionClass:
    """The probability that the reply shows the emotion that the corpus gives the client, by a head.

    The note `accuracy` is 1 where that emotion is the most probable, else 0: a neutral corpus makes it high for nothing, so
    compare it with the head's majority baseline. An annotation that is no label of the head is looked up among Ekman's
    emotions; the term abstains where there is none (jealousy), and without an annotation. An empty reply shows nothing: 0.
    """

    def __init__(self, bench: Workbench) -> None:
        """Raises ValueError when `rewards.emotion_class.head` cannot be read."""
        folder = Path(bench.config.emotion_class.head).expanduser()
        self._head = Head.load(folder, bench.encoder, kind="emotion", knob="rewards.emotion_class.head")
        self._column = {label.casefold(): c for c, label in enumerate(self._head.labels)}

    def applies(self, rollout: Rollout) -> bool:
        """Whether the annotated emotion is one that the head knows."""
        return self._wanted(rollout) is not None

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the emotion is known to the head."""
        return _label_scores(self._head, rollouts, [self._wanted(r) for r in rollouts])

    def _wanted(self, rollout: Rollout) -> int | None:
        emotion = rollout.prompt.emotion.strip().casefold()
        return self._column.get(emotion, self._column.get(_EKMAN.get(emotion, "")))


class DialogueAct:
    """The probability that the reply has the dialogue act of the therapist's own, by a head.

    The note `accuracy` is 1 where that act is the most probable, else 0. Abstains where the act is not annotated or the head
    does not know it. An empty reply does nothing: 0.
    """

    def __init__(self, bench: Workbench, folder: str = "", *, knob: str = "act.head") -> None:
        """`folder` holds the head ("" takes that of `rewards.act.head`), `knob` names the setting it comes from.

        Raises ValueError, naming the setting, when it cannot be read.
        """
        folder = folder or bench.config.act.head
        self._head = Head.load(Path(folder).expanduser(), bench.encoder, kind="act", knob=f"rewards.{knob}")
        self._column = {label.casefold(): c for c, label in enumerate(self._head.labels)}

    def applies(self, rollout: Rollout) -> bool:
        """Whether the therapist's act is one that the head knows."""
        return self._wanted(rollout) is not None

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the act is known to the head."""
        return _label_scores(self._head, rollouts, [self._wanted(r) for r in rollouts])

    def _wanted(self, rollout: Rollout) -> int | None:
        return self._column.get(rollout.prompt.labels.get("dialogue_act", "").strip().casefold())


class Empathy:
    """EPITOME's empathy (Sharma et al. 2020, arXiv:2009.08441): the mean over its three mechanisms of

        (0 p(none) + 1 p(weak) + 2 p(strong)) / 2

    by a head each, of the reply and the client's turn that it answers. The mechanisms are its parts. Abstains where there is
    no client's turn. An empty reply is 0, without parts.
    """

    def __init__(self, bench: Workbench) -> None:
        """Raises ValueError when `rewards.empathy.heads` cannot be read."""
        self._encoder = bench.encoder
        folder, knob = Path(bench.config.empathy.heads).expanduser(), "rewards.empathy.heads"
        self._heads = {name: Head.load(folder / name, bench.encoder, kind="empathy", knob=knob) for name in MECHANISMS}

    def applies(self, rollout: Rollout) -> bool:
        """Whether the client has said something."""
        return bool(rollout.prompt.last_client_turn.strip())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client has spoken."""
        said = [r for r in rollouts if r.text.strip()]
        judged = iter(self._judge(said) if said else [])
        return [next(judged) if r.text.strip() else Score(0.0) for r in rollouts]

    def _judge(self, rollouts: Sequence[Rollout]) -> list[Score]:
        x_NF = exchange_features(
            self._encoder, [r.text for r in rollouts], [r.prompt.last_client_turn for r in rollouts]
        )
        found = {name: _expected(head, head.probabilities(x_NF)) for name, head in self._heads.items()}
        parts = [{name: float(level_N[i]) for name, level_N in found.items()} for i in range(len(rollouts))]
        return [Score(sum(part.values()) / len(part), part) for part in parts]


def _expected(head: Head, probability_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expected level as a share of the highest, `[N]`."""
    share_C = np.array([_LEVELS.index(label) / (len(_LEVELS) - 1) for label in head.labels])
    return (probability_NC @ share_C).clip(0.0, 1.0)


def _label_scores(head: Head, rollouts: Sequence[Rollout], wanted: Sequence[int | None]) -> list[Score]:
    said = [i for i, r in enumerate(rollouts) if r.text.strip()]
    scores = [Score(0.0, notes={"accuracy": 0.0}) for _ in rollouts]
    for i, probability_C in zip(said, head.read([rollouts[i].text for i in said]), strict=True):
        right = float(probability_C.argmax() == wanted[i])
        scores[i] = Score(float(probability_C[wanted[i]]), notes={"accuracy": right})
    return scores
