"""A Python callable of the user's own as a term."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import SupportsFloat

from rewards.config import CustomConfig
from rewards.types import RewardError, Score
from rollout.types import Rollout

Scorer = Callable[[Sequence[Rollout]], Sequence[SupportsFloat | Score]]


class Custom:
    """What a callable says: `(rollouts: Sequence[rollout.types.Rollout]) -> Sequence[float | rewards.types.Score]`.

    One number in [0, 1], or one `Score`, per rollout, in order. It is called with all replies to a prompt that were
    sampled together, and must answer as a function of the call alone: reward actors are several, and are replaced when
    they die. It runs in their processes, so its module must be importable there. What it raises ends the step.
    """

    def __init__(self, config: CustomConfig) -> None:
        self._path = config.path
        self._scorer = _load(config.path)

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        answers = list(self._scorer(rollouts))
        if len(answers) != len(rollouts):
            raise RewardError(f"{self._path} must give one score per reply, got {len(answers)} for {len(rollouts)}")
        return [self._read(answer, rollout) for answer, rollout in zip(answers, rollouts, strict=True)]

    def _read(self, answer: SupportsFloat | Score, rollout: Rollout) -> Score:
        if isinstance(answer, Score):
            return answer
        try:
            return Score(float(answer))
        except (TypeError, ValueError) as error:
            raise RewardError(f"{self._path} must give a number or a Score, got {answer!r} for {rollout.id}") from error


def _load(path: str) -> Scorer:
    """The callable at "package.module:name"; ValueError where there is none."""
    module, _, name = path.partition(":")
    rule = f'rewards.custom.path must be "package.module:name" of a callable, got {path!r}'
    if not module or not name:
        raise ValueError(f"{rule}: name the module and, after a colon, the callable")
    try:
        scorer = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{rule} ({error}): install it, or put its folder on PYTHONPATH of every node") from error
    except AttributeError as error:
        raise ValueError(f"{rule} ({error}): check the name after the colon") from error
    except Exception as error:  # a module may fail in any way while it is imported
        raise ValueError(f"{rule} ({type(error).__name__}: {error}): its module must import without errors") from error
    if not callable(scorer):
        raise ValueError(f"{rule} ({name} is a {type(scorer).__name__}): name a function, or an object with __call__")
    return scorer
