"""One reading of a text for every rule: what counts as a word, a sentence, the same text."""

from __future__ import annotations

import re
import unicodedata

_DROPPED = re.compile(r"[\'`*_~\u00b4\u02bc\u2018\u2019\u00ad\u200b-\u200d\ufeff]")  # quotes, emphasis, invisible
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Lower case, compatible Unicode forms, no apostrophes or emphasis marks, single spaces.

    "Don't" (with either apostrophe), "DON'T" and "dont" become the same word, since people in distress type all three.
    """
    return " ".join(unicodedata.normalize("NFKC", _DROPPED.sub("", text)).casefold().split())


def words(text: str) -> list[str]:
    """The normalised words, in order, without punctuation."""
    return _WORD.findall(normalise(text))


def sentences(text: str) -> list[str]:
    """The normalised sentences, each with its closing mark; a line break ends a sentence too."""
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := normalise(part))]


def phrases(table: str, **parts: str) -> re.Pattern[str]:
    """Compile a lexicon: one regular expression per line, matched as whole words.

    Apostrophes are written away ("dont", "youre"), as `normalise` does. The names of `parts`, in capitals, stand in the
    lines for what they hold.
    """
    for name, part in parts.items():
        table = table.replace(name, f"({part})")
    lines = (line.strip() for line in table.splitlines())
    return re.compile(rf"\b(?:{'|'.join(filter(None, lines))})\b")
