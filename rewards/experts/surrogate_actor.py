"""A `Surrogate` beside the driver, as a Ray actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from rewards.config import EncoderConfig
from rewards.experts.surrogate import Guess, Surrogate, Trial
from rewards.preference_features import Answer
from rewards.rated_replies import RatedReply


class SurrogateActor:
    """A `Surrogate` in a process of its own, so that fitting it takes no time from the loop."""

    def __init__(self, encoder: EncoderConfig, *, members: int, seed: int, environment: Mapping[str, str]) -> None:
        make = ray.remote(Surrogate).options(
            num_cpus=0, max_concurrency=2, runtime_env={"env_vars": dict(environment)}
        )  # it guesses while it fits
        self._actor: Any = make.remote(encoder, members=members, seed=seed)

    def guess(self, answers: Sequence[Answer]) -> list[Guess]:
        """`Surrogate.guess`."""
        return ray.get(self._actor.guess.remote(answers))

    def learn(self, rated: Sequence[RatedReply]) -> Trial | None:
        """`Surrogate.learn`."""
        return ray.get(self._actor.learn.remote(rated))
