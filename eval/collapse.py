"""Has the policy collapsed onto a few replies? Figures of a list of replies, in plain Python.

Text is read as the rewards read it (`rewards/words.py`): case, white space, apostrophes, emphasis marks and compatible
Unicode forms make no difference, and a word has no punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from rewards.conduct_rules import STOCK
from rewards.words import normalise, words

OPENING_WORDS = 4


def collapse_figures(replies: Sequence[str]) -> dict[str, float]:
    """How long, how varied and how stereotyped `replies` are; of N replies:

        mean_words      words / N                                                   [0, inf)
        distinct_n      |set of n-grams| / |n-grams|, over all replies, n = 1, 2    [0, 1], falls with collapse
        duplicate_rate  replies that are the same text as another one / N           [0, 1], rises with collapse
        opening_rate    replies with the same first four words as another one / N   [duplicate_rate, 1], rises
        template_rate   replies that hold a stock phrase (`rewards.conduct_rules`) / N [0, 1], rises
        empty_rate      replies without a word / N                                  [0, 1]

    distinct_n is that of Li et al. 2016 (arXiv:1510.03055), counted per n-gram where they count per word. n-grams stay
    within a reply; where there are none it is 0, as nothing is said. It falls with the amount of text, too: compare
    lists of like size only. Every copy counts, the first one included. A reply of fewer than four words opens with all
    it has, so that empty replies, for one, are duplicates with one opening. Raises `ValueError` on an empty list, which
    has no figures.
    """
    if not replies:
        raise ValueError("replies must hold at least one reply, is an empty list; generate some first")
    said = [words(reply) for reply in replies]
    return {
        "mean_words": sum(map(len, said)) / len(said),
        "distinct_1": _distinct(said, 1),
        "distinct_2": _distinct(said, 2),
        "duplicate_rate": _shared([normalise(reply) for reply in replies]),
        "opening_rate": _shared([tuple(spoken[:OPENING_WORDS]) for spoken in said]),
        "template_rate": sum(STOCK.search(normalise(reply)) is not None for reply in replies) / len(said),
        "empty_rate": said.count([]) / len(said),
    }


def _distinct(said: Sequence[Sequence[str]], n: int) -> float:
    ngrams = [tuple(spoken[i : i + n]) for spoken in said for i in range(len(spoken) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _shared(marks: Sequence[Hashable]) -> float:
    """The share of `marks` that come more than once."""
    return sum(count for count in Counter(marks).values() if count > 1) / len(marks)
