"""Terms that ask a fitted head about the reply: its emotion, its dialogue act, its empathy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.head_features import exchange_features
from rewards.heads import SHIPPED, Head
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


class LabelTerm(ABC):
    """The probability that the reply has the label that the corpus gives, by a head.

    The note `accuracy` is 1 where that label is the most probable, else 0. Abstains where the label is not annotated or the
    head does not know it. An empty reply has none: 0.
    """

    def __init__(self, bench: Workbench, folder: str, *, kind: str, knob: str) -> None:
        """Raises ValueError, naming the setting `knob`, when `folder` holds no head of this kind."""
        self._head = Head.load(Path(folder).expanduser(), bench.encoder, kind=kind, knob=f"rewards.{knob}")
        self._column = {label.casefold(): c for c, label in enumerate(self._head.labels)}

    def applies(self, rollout: Rollout) -> bool:
        """Whether the annotated label is one that the head knows."""
        return self._wanted(rollout) is not None

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the label is known to the head."""
        said = [i for i, r in enumerate(rollouts) if r.text.strip()]
        scores = [Score(0.0, notes={"accuracy": 0.0}) for _ in rollouts]
        for i, probability_C in zip(said, self._head.read([rollouts[i].text for i in said]), strict=True):
            wanted = self._wanted(rollouts[i])
            right = float(probability_C.argmax() == wanted)
            scores[i] = Score(float(probability_C[wanted]), notes={"accuracy": right})
        return scores

    @abstractmethod
    def _wanted(self, rollout: Rollout) -> int | None:
        """The head's column of the annotated label; None where it has none."""


class EmotionClass(LabelTerm):
    """The probability that the reply shows the emotion that the corpus gives the client; see `LabelTerm`.

    A neutral corpus makes `accuracy` high for nothing, so compare it with the head's majority baseline. An annotation that is
    no label of the head is looked up among Ekman's emotions, of which jealousy is none.
    """

    def __init__(self, bench: Workbench) -> None:
        folder = bench.config.emotion_class.head or str(SHIPPED / "emotion")
        super().__init__(bench, folder, kind="emotion", knob="emotion_class.head")

    def _wanted(self, rollout: Rollout) -> int | None:
        emotion = rollout.prompt.emotion.strip().casefold()
        return self._column.get(emotion, self._column.get(_EKMAN.get(emotion, "")))


class DialogueAct(LabelTerm):
    """The probability that the reply has the dialogue act of the therapist's own; see `LabelTerm`."""

    def __init__(self, bench: Workbench, folder: str = "", *, knob: str = "act.head") -> None:
        """`folder` holds the head ("" takes that of `rewards.act.head`), `knob` names the setting it comes from."""
        super().__init__(bench, folder or bench.config.act.head, kind="act", knob=knob)

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
