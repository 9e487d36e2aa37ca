"""What people would think of a reply, by a model fitted to their ratings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.preference_ensemble import read_ensemble
from rewards.preference_features import Answer, Sight, texts_of
from rewards.types import Score
from rewards.workbench import Workbench
from rollout.types import Rollout


class Preference:
    """clip(mean - beta * std, 0, 1) of an ensemble fitted to people's ratings, with `mean` and `std` as notes.

    beta is `rewards.preference.beta`. The ensemble disagrees where ratings were few or far away, so a larger beta pays
    less for what nobody has rated. An empty reply is nobody's preference: 0, without notes.
    """

    def __init__(self, bench: Workbench) -> None:
        """Raises ValueError when `rewards.preference.model` cannot be read or was fitted with another encoder."""
        config = bench.config
        self._beta = config.preference.beta
        self._encoder = bench.encoder
        self._ensemble = read_ensemble(config.preference.model, bench.encoder, config.encoder)

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        answers = [(r.prompt.history, r.text) for r in rollouts if r.text.strip()]
        judged = iter(self._judge(answers) if answers else [])
        return [next(judged) if r.text.strip() else Score(0.0) for r in rollouts]

    def _judge(self, answers: Sequence[Answer]) -> list[Score]:
        known = self._encoder.read(texts_of(answers))
        vectors = {text: embedded.vector.double().numpy() for text, embedded in known.items()}
        mean_N, std_N = self._ensemble.predict(
            Sight(vectors, self._encoder.width).matrix(self._ensemble.features, answers)
        )
        value_N = np.clip(mean_N - self._beta * std_N, 0.0, 1.0)
        return [
            Score(float(value), notes={"mean": float(mean), "std": float(std)})
            for value, mean, std in zip(value_N, mean_N, std_N, strict=True)
        ]
