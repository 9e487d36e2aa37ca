"""The preference model: an ensemble of linear heads on sentence vectors, and the folder that it is kept in.

Axes: N replies, F features, K members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.config import EncoderConfig
from rewards.encoder import SentenceEncoder
from rewards.heads import encoder_vector, same_encoder
from rewards.preference_features import SCALARS, VECTORS, Matrix, is_scalar

Floats = NDArray[np.float64]

CARD, WEIGHTS = "card.json", "model.safetensors"
KIND = "preference"
_SCALING, _HEADS = ("low", "high", "center", "scale"), ("weights", "intercepts", "calibration")


@dataclass(frozen=True)
class Scaling:
    """How features are made comparable: z = (clip(x, low, high) - center) / scale, each array `[F]`."""

    low: Floats
    high: Floats
    center: Floats
    scale: Floats

    def apply(self, x_NF: Matrix) -> Matrix:
        """z, `[N, F]`."""
        return (np.clip(x_NF, self.low, self.high) - self.center) / self.scale


@dataclass(frozen=True)
class Ensemble:
    """K linear heads on the same features, on the scale of the ratings they were fitted to:

        member_k(x) = slope * (weights_k . z(x) + intercepts_k) + offset

    `calibration` is (slope, offset), `weights` is `[K, F]`, `intercepts` is `[K]`.
    """

    features: tuple[str, ...]
    scaling: Scaling
    weights: Floats
    intercepts: Floats
    calibration: Floats

    def predict(self, x_NF: Matrix) -> tuple[Floats, Floats]:
        """Mean and population standard deviation over the members, each `[N]`."""
        raw_NK = self.scaling.apply(x_NF) @ self.weights.T + self.intercepts
        members_NK = self.calibration[0] * raw_NK + self.calibration[1]
        return members_NK.mean(axis=1), members_NK.std(axis=1)


def write_ensemble(ensemble: Ensemble, folder: Path) -> None:
    """Write the weights into `folder`; the card is the caller's, and must hold `base_card`."""
    from safetensors.numpy import save_file

    arrays = {name: getattr(ensemble.scaling, name) for name in _SCALING}
    arrays |= {name: getattr(ensemble, name) for name in _HEADS}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / WEIGHTS)


def base_card(ensemble: Ensemble, encoder: SentenceEncoder, config: EncoderConfig) -> dict[str, Any]:
    """What a card must hold for `read_ensemble`: the kind of folder, the features, the encoder.

    The encoder is told by a fixed sentence's vector, to three digits: the path may change, the vector may not.
    """
    return {
        "kind": KIND,
        "features": list(ensemble.features),
        "members": len(ensemble.weights),
        "encoder": {
            "path": config.path,
            "max_tokens": config.max_tokens,
            "width": encoder.width,
            "vector": _vector(encoder),
        },
    }


def _vector(encoder: SentenceEncoder) -> list[float]:
    vector = [round(number, 3) for number in encoder_vector(encoder).tolist()]
    encoder.forget()
    return vector


def read_ensemble(folder: str, encoder: SentenceEncoder, config: EncoderConfig) -> Ensemble:
    """Read what `attune fit preference` wrote.

    Raises ValueError, naming `rewards.preference.model`, when the folder is none, or was fitted with another encoder or
    other `max_tokens`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    where = f"rewards.preference.model {folder!r}"
    try:
        card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
        arrays = load_file(Path(folder) / WEIGHTS)
        names, mark = tuple(card["features"]), card["encoder"]
        kind, path, max_tokens = card["kind"], mark["path"], mark["max_tokens"]
        ensemble = Ensemble(
            names,
            Scaling(**{name: arrays[name] for name in _SCALING}),
            **{name: arrays[name] for name in _HEADS},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{where} must be a folder that `attune fit preference` wrote, is not ({type(error).__name__}: {error}); fit one"
        ) from error
    if kind != KIND or not set(names) <= {*VECTORS, *SCALARS}:
        raise ValueError(f"{where} must be a preference model, is of kind {kind!r} with features {names}; fit one")
    _check_encoder(where, mark, encoder, config, f"{path!r} (max_tokens {max_tokens})")
    if ensemble.weights.shape != (card["members"], len(is_scalar(names, encoder.width))):
        raise ValueError(
            f"{where}: {WEIGHTS} does not belong to {CARD}, weights are {ensemble.weights.shape}; fit again"
        )
    return ensemble


def _check_encoder(
    where: str, mark: Mapping[str, Any], encoder: SentenceEncoder, config: EncoderConfig, fitted: str
) -> None:
    same = encoder.width == mark["width"] and same_encoder(np.array(_vector(encoder)), np.array(mark["vector"]))
    if not same or config.max_tokens != mark["max_tokens"]:
        raise ValueError(
            f"{where} must be used with the encoder that it was fitted with, {fitted}; rewards.encoder is {config.path!r} "
            f"(max_tokens {config.max_tokens}){'' if same else ', which gives other vectors'}: set that one, or fit again"
        )
