"""Decoders as Ray actors, so that prompts are decoded in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.placement import Placement
from cluster.pool import Pool
from eval.arms import Answer
from eval.decoder import Decoder, DecoderSpec
from rollout.types import Prompt

FLEET = "decoder"


class DecoderFleet:
    """N decoders; a dead one is replaced and asked again."""

    def __init__(self, spec: DecoderSpec, decoders: int, placement: Placement, environment: Mapping[str, str]) -> None:
        def spawn(index: int) -> Any:
            options = {**placement.options(FLEET, index), "runtime_env": {"env_vars": dict(environment)}}
            return ray.remote(Decoder).options(**options).remote(spec)

        self._pool = Pool(FLEET, decoders, spawn, restarts=1)

    def decode(
        self, prompts: Sequence[Prompt], *, beams: int, sample: bool, max_tokens: int, seed: int
    ) -> list[Answer]:
        """`Decoder.decode`; the deal depends on the prompts alone."""
        hands = len(self._pool)
        shares = [list(prompts[hand::hands]) for hand in range(hands)]
        ask = [(share, beams, sample, max_tokens, seed + hand) for hand, share in enumerate(shares)]
        answers = self._pool.map(Decoder.decode, ask)
        return [answers[place % hands][place // hands] for place in range(len(prompts))]
