"""What the store calls to turn ratings into rewards, under the names of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.experts import aggregation
from rewards.experts.fixing import Aggregate, Group, Worth
from rewards.experts.rating_rows import Row
from rewards.experts.stepwise import stepwise
from rewards.experts.types import Rating


def random_effects(ratings: Sequence[Rating], groups: Mapping[str, Group]) -> Worth:
    """Item and rater as crossed random effects round the mean of each step: the default.

        value_i = m_g + lambda_i (y_i - m_g),  lambda_i = var_item / (var_item + var_noise / n_i)

    y_i is the mean of reply i's ratings less what their raters give too much, m_g the mean of y over the replies of i's step
    (`stepwise`). A step's mean is what the raters said of that step; only differences within a step are shrunk.
    """
    found = stepwise(_rows(ratings), groups)
    return Worth(found.items, found.notes)


def standardised(ratings: Sequence[Rating], groups: Mapping[str, Group]) -> Worth:
    """Every rater brought to the panel's mean and spread, then averaged; steps are not told apart."""
    found = aggregation.standardised(_rows(ratings))
    return Worth(found.items, found.notes)


def mean(ratings: Sequence[Rating], groups: Mapping[str, Group]) -> Worth:
    """The average; steps are not told apart."""
    found = aggregation.mean(_rows(ratings))
    return Worth(found.items, found.notes)


def _rows(ratings: Sequence[Rating]) -> list[Row]:
    return [Row(rating.item, rating.rater, rating.overall, rating.flags) for rating in ratings]


RULES: Mapping[str, Aggregate] = {rule.__name__: rule for rule in (random_effects, standardised, mean)}
"""By the value of `rewards.experts.service.aggregation`."""
