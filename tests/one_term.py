"""A reward of one term, that loads no model of its own accord."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewards.config import CrisisConfig, RewardsConfig, TermConfig


def one_term(name: str, section: TermConfig) -> RewardsConfig:
    """Settings under which `section` is the only paid and the only measured term."""
    silent: dict[str, Any] = {other: replace(term, weight=0.0) for other, term in RewardsConfig().terms.items()}
    return RewardsConfig(**{**silent, name: section}, crisis=CrisisConfig(classifier=False, cap=False))
