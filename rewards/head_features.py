"""What a fitted head sees of a text: the frozen encoder's mean token after every layer, not after the last alone.

The last layer is trained for likeness of meaning; how a thing is said shows better in the layers before it. Axes: N texts,
F = L * D features of a text (L layers of width D).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.encoder import SentenceEncoder

Floats = NDArray[np.float32]
CHUNK = 1024


def text_features(encoder: SentenceEncoder, texts: Sequence[str]) -> Floats:
    """Return `[N, F]`: the unit vectors of all layers side by side. The encoder remembers the texts until `forget`."""
    known = encoder.read(texts)
    return np.stack([known[text].layers.numpy().ravel() for text in texts])


def exchange_features(encoder: SentenceEncoder, replies: Sequence[str], clients: Sequence[str]) -> Floats:
    """Return `[N, 3 F]`: the features of each reply, of what it answers, and their product."""
    return exchange(text_features(encoder, replies), text_features(encoder, clients))


def exchange(reply_NF: Floats, client_NF: Floats) -> Floats:
    """Reply, client and their product (scaled so that its coordinates are as large as theirs), side by side."""
    return np.hstack([reply_NF, client_NF, reply_NF * client_NF * np.float32(np.sqrt(reply_NF.shape[1]))])


class Features:
    """The features of many texts, each embedded once, `CHUNK` at a time: the encoder remembers every token's state until
    it is told not to, and a corpus of them does not fit in memory."""

    def __init__(self, encoder: SentenceEncoder, texts: Iterable[str], say: Callable[[str], None]) -> None:
        wanted = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
        self._row = {text: row for row, text in enumerate(wanted)}
        parts = []
        began, work = time.monotonic(), [len(text) + 1 for text in wanted]
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            parts.append(text_features(encoder, chunk))
            encoder.forget()
            done = start + len(chunk)
            left_s = (time.monotonic() - began) * (sum(work) / sum(work[:done]) - 1)
            say(f"  embedded {done} of {len(wanted)} texts, {left_s / 60:.1f} min left")
        self._features = np.concatenate(parts)

    def of(self, texts: Sequence[str]) -> Floats:
        """Return `[N, F]`."""
        return self._features[[self._row[text] for text in texts]]
