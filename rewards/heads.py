"""Heads: small classifiers on the frozen sentence encoder, fitted by `attune fit` and read back here.

A head's folder holds `card.json`, `head.safetensors`, MODEL_CARD.md and reliability.png. Axes: N texts, F features, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.encoder import SentenceEncoder
from rewards.head_features import Floats, text_features

CARD, WEIGHTS = "card.json", "head.safetensors"
SHIPPED = Path(__file__).parent / "fitted"
_PROBE = "I have thought about what you said last week, and I am still not sure how I feel about it."
_ROOM = 2e-3  # vectors are written to three digits; another machine's last bits may round the other way


@dataclass(frozen=True)
class Head:
    """One linear layer on the encoder's features:  p(label | x) = softmax((W x + b) / temperature).

    `labels` name the rows of `weight_CF` and `bias_C`; `card` is what the folder says of itself.
    """

    labels: tuple[str, ...]
    weight_CF: Floats
    bias_C: Floats
    temperature: float
    encoder: SentenceEncoder
    card: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: SentenceEncoder,
        *,
        kind: str,
        knob: str,
        remedy: str = "set that one, or fit again",
    ) -> Head:
        """Read what `attune fit KIND` wrote.

        Raises ValueError, naming the setting `knob`, when the folder is none, holds a head of another kind, or was fitted
        with an encoder that gives other vectors or cuts texts elsewhere (`remedy` says what to do then).
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        where = f"{knob} {str(folder)!r}"
        try:
            card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
            arrays = load_file(Path(folder) / WEIGHTS)
            found, labels, temperature = card["kind"], tuple(card["labels"]), float(card["temperature"])
            weight_CF, bias_C, vector = arrays["weight"], arrays["bias"], arrays["encoder"]
            path, max_tokens = card["encoder"]["path"], int(card["encoder"]["max_tokens"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{where} must be a folder that `attune fit {kind}` wrote, is not ({type(error).__name__}: {error}); fit one"
            ) from error
        if found != kind:
            raise ValueError(f"{where} must be a head of kind {kind!r}, is of kind {found!r}; run `attune fit {kind}`")
        if weight_CF.shape[:1] != (len(labels),) or bias_C.shape != (len(labels),) or not temperature > 0:
            raise ValueError(
                f"{where}: {WEIGHTS} does not belong to {CARD}, weights are {weight_CF.shape} for {len(labels)} labels; "
                "fit again"
            )
        ours = encoder_vector(encoder)
        if not same_encoder(ours, vector):
            raise ValueError(
                f"{where} must be used with the encoder that it was fitted with, {path!r} ({len(vector)} wide); "
                f"rewards.encoder gives other vectors ({len(ours)} wide): {remedy}"
            )
        if encoder.max_tokens != max_tokens:
            raise ValueError(
                f"{where} must be used with rewards.encoder.max_tokens = {max_tokens}, as it was fitted; that is "
                f"{encoder.max_tokens}, which gives other vectors of long texts: {remedy}"
            )
        return cls(labels, weight_CF, bias_C, temperature, encoder, card)

    def probabilities(self, x_NF: Floats) -> NDArray[np.float64]:
        """Return `[N, C]`, in the order of `labels`; ValueError when the features are not those it was fitted on."""
        if x_NF.shape[1] != self.weight_CF.shape[1]:
            raise ValueError(f"the head takes {self.weight_CF.shape[1]} features of a text, got {x_NF.shape[1]}")
        return softmax(logits(x_NF, self.weight_CF, self.bias_C) / self.temperature)

    def read(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probabilities of single texts, `[N, C]`."""
        return self.probabilities(text_features(self.encoder, texts)) if texts else np.empty((0, len(self.labels)))


def logits(x_NF: Floats, weight_CF: Floats, bias_C: Floats) -> NDArray[np.float64]:
    """W x + b, `[N, C]`."""
    return (x_NF @ weight_CF.T + bias_C).astype(np.float64)


def softmax(logit_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(z_c) / sum_c exp(z_c), row by row."""
    shifted_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    return shifted_NC / shifted_NC.sum(axis=1, keepdims=True)


def encoder_vector(encoder: SentenceEncoder) -> Floats:
    """What tells an encoder: a fixed sentence's vector to three digits. Its path may change, this may not."""
    return encoder.embed([_PROBE])[0].numpy().round(3)


def same_encoder(ours_D: Floats, theirs_D: Floats) -> bool:
    """Whether two `encoder_vector`s are one encoder's, as far as machines agree."""
    return ours_D.shape == theirs_D.shape and bool(np.abs(ours_D - theirs_D).max() <= _ROOM)
