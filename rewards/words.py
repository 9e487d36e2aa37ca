"""One reading of a text for every rule: what counts as a word, a sentence, the same text."""

from __future__ import annotations

import re
import unicodedata

_DROPPED = re.compile("['’‘`´*_~\u00ad\u200b-\u200d\ufeff]")  # noqa: RUF001 (typographic apostrophes)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Lower case, compatible Unicode forms, no apostrophes or emphasis marks, single spaces.

    "Don’t", "DON'T" and "dont" become the same word, since people in distress type all three.
    """
    return " ".join(_DROPPED.sub("", unicodedata.normalize("NFKC", text)).casefold().split())


def words(text: str) -> list[str]:
    """The normalised words, in order, without punctuation."""
    return _WORD.findall(normalise(text))


def sentences(text: str) -> list[str]:
    """The normalised sentences, each with its closing mark; a line break ends a sentence too."""
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := normalise(part))]
