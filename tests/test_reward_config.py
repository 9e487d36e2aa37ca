from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from rewards.config import (
    EmotionConfig,
    EncoderConfig,
    InquiryConfig,
    LengthConfig,
    RepetitionConfig,
    RewardsConfig,
    SimilarityConfig,
)
from rewards.panel import EXPERTS, TERMS


def length_alone(weight: float) -> RewardsConfig:
    return RewardsConfig(
        similarity=SimilarityConfig(weight=0),
        emotion=EmotionConfig(weight=0),
        inquiry=InquiryConfig(weight=0),
        length=LengthConfig(weight=weight),
        repetition=RepetitionConfig(weight=0),
    )


@pytest.mark.parametrize(
    ("build", "knob", "value"),
    [
        (lambda: RewardsConfig(similarity=SimilarityConfig(weight=-1.0)), "rewards.similarity.weight", "-1.0"),
        (lambda: RewardsConfig(emotion=EmotionConfig(weight=float("nan"))), "rewards.emotion.weight", "nan"),
        (lambda: RewardsConfig(inquiry=InquiryConfig(weight=float("inf"))), "rewards.inquiry.weight", "inf"),
        (lambda: EncoderConfig(path=""), "rewards.encoder.path", "''"),
        (lambda: EncoderConfig(max_tokens=2), "rewards.encoder.max_tokens", "2"),
        (lambda: EncoderConfig(batch_size=0), "rewards.encoder.batch_size", "0"),
        (lambda: LengthConfig(low=0), "rewards.length.low", "0"),
        (lambda: LengthConfig(low=30, high=20), "rewards.length.high", "20"),
        (lambda: LengthConfig(band=0), "rewards.length.band", "0"),
        (lambda: RepetitionConfig(ngram=0), "rewards.repetition.ngram", "0"),
        (lambda: RewardsConfig(floor=0.5), "rewards.floor", "0.5"),
        (lambda: RewardsConfig(floor=float("-inf")), "rewards.floor", "-inf"),
        (lambda: length_alone(0), "rewards.*.weight", "all 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_dotted_name_and_value(
    build: Callable[[], object], knob: str, value: str
) -> None:
    """Every broken setting raises a ValueError that names the dotted knob, the value and what to do."""
    with pytest.raises(ValueError) as refusal:
        build()
    named, _, remedy = str(refusal.value).rpartition(": ")
    assert named.startswith(f"{knob} must be ")
    assert f"got {value}" in named.replace("'all 0'", "all 0")
    assert remedy


def test_weights_hold_the_terms_in_use_and_each_has_a_builder() -> None:
    """A term of weight 0 is not in use, and any term that can be given a weight can be built."""
    assert RewardsConfig().terms.keys() == TERMS.keys() | {EXPERTS}  # experts are asked beside the panel
    assert length_alone(2.0).weights == {"length": 2.0}


def test_the_reward_layer_is_described_without_torch() -> None:
    """Importing the mixture (and so every term and its settings) imports neither torch nor transformers."""
    code = "import sys, rewards.mixture; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
