"""Which replies the raters should see: where the surrogate knows least, no two alike, and some by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Indices of the chosen replies, rising; `by_chance` are those that were drawn without looking."""

    chosen: tuple[int, ...]
    by_chance: frozenset[int]


def choose(std_N: Sequence[float], vectors_ND: Real, count: int, random_share: float, seed: int) -> Choice:
    """Choose `count` of N replies. `std_N` is the ensemble's disagreement, `vectors_ND` unit vectors of the replies.

    ceil(random_share x count) are drawn at random: on these alone surrogate and raters are compared, since an estimate on
    replies that were chosen for their difficulty would say too much. Each further one is

        argmax_i  std_i x (1 - max over the chosen j of v_i . v_j)

    so that a reply is not asked about twice in other words (uncertainty times farthest-first, as in k-center active
    learning: Sener & Savarese 2018, arXiv:1708.00489). Where the ensemble agrees about everything, chance decides.
    """
    count = min(count, len(std_N))
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(std_N))]
    chosen = order[: math.ceil(random_share * count)] if count else []
    by_chance = frozenset(chosen)
    std = np.array(std_N, dtype=np.float64)
    while len(chosen) < count:
        near_N = (vectors_ND @ vectors_ND[chosen].T).max(axis=1) if chosen else np.zeros(len(std))
        worth_N = std * (1 - near_N).clip(min=0)
        left = [i for i in order if i not in chosen]  # ties go to the first in the random order
        chosen.append(max(left, key=lambda i: worth_N[i]))
    return Choice(tuple(sorted(chosen)), by_chance)
