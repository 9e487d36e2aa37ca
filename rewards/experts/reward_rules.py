"""What the store calls to turn ratings into rewards: `rewards.experts.aggregation`, under the names of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.experts import aggregation
from rewards.experts.fixing import Aggregate
from rewards.experts.rating_rows import Row
from rewards.experts.types import Rating

Values = Mapping[str, tuple[float, float]]


def random_effects(ratings: Sequence[Rating]) -> Values:
    """Item and rater as crossed random effects: the default."""
    return aggregation.random_effects(_rows(ratings)).items


def standardised(ratings: Sequence[Rating]) -> Values:
    """Every rater brought to the panel's mean and spread, then averaged."""
    return aggregation.standardised(_rows(ratings)).items


def mean(ratings: Sequence[Rating]) -> Values:
    """The average."""
    return aggregation.mean(_rows(ratings)).items


def _rows(ratings: Sequence[Rating]) -> list[Row]:
    return [Row(rating.item, rating.rater, rating.overall, rating.flags) for rating in ratings]


RULES: Mapping[str, Aggregate] = {rule.__name__: rule for rule in (random_effects, standardised, mean)}
"""By the value of `rewards.experts.service.aggregation`."""
