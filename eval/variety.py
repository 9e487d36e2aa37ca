"""How alike replies are among themselves, counted for many samples of them at once.

Each rule takes what is counted of the replies and returns mask_BR -> the figure of each sample, [B]; see `eval.figures`.
Axes: R replies, B samples, V n-grams or other marks, L lengths, O orders (1 to 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from eval.bleu import ORDER, bleu
from eval.figures import Floats, Rule, quotient

Words = Sequence[str]


def distinct(n: int) -> Rule:
    """|set of n-grams| / |n-grams| over all replies (Li et al. 2016, arXiv:1510.03055), of each reply's words; 0 without
    any. The count is per n-gram, as `eval.collapse` has it."""

    def rule(said: Sequence[Words]) -> Callable[[Floats], Floats]:
        grams = [Counter(ngrams(words, n)) for words in said]
        total_R = np.array([gram.total() for gram in grams], dtype=np.float64)
        common_RV, own_R = _presence(grams)

        def figure(mask_BR: Floats) -> Floats:
            seen_B = mask_BR @ own_R + (_count(common_RV, mask_BR) > 0).sum(axis=0)
            return quotient(seen_B, mask_BR @ total_R, nothing=0.0)

        return figure

    return rule


def shared(marks: Sequence[Hashable]) -> Callable[[Floats], Floats]:
    """The share of replies whose mark another reply has, too; every copy counts, the first one included."""
    common_RV, _ = _presence([Counter([mark]) for mark in marks])

    def figure(mask_BR: Floats) -> Floats:
        count_VB = _count(common_RV, mask_BR)
        return quotient((count_VB * (count_VB > 1)).sum(axis=0), mask_BR.sum(axis=1), nothing=0.0)

    return figure


def self_bleu(said: Sequence[Words]) -> Callable[[Floats], Floats]:
    """The mean over replies of `self_bleu_each`."""
    each = self_bleu_each(said)

    def figure(mask_BR: Floats) -> Floats:
        return quotient((mask_BR * each(mask_BR)).sum(axis=1), mask_BR.sum(axis=1), nothing=0.0)

    return figure


def self_bleu_each(said: Sequence[Words]) -> Callable[[Floats], Floats]:
    """mask_BR -> [B, R]: sentence BLEU of each reply with every other reply of its sample as a reference (Zhu et al. 2018,
    arXiv:1802.01886), as sacrebleu's with effective order. What stands for a reply outside its sample means nothing.

    A reply's n-gram that it has c times counts up to the most times that any one other reply has it. That is the sum over
    k = 1..c of whether two replies of the sample, itself one of them, have it k times or more: no maxima, only counts.
    """
    levels = [
        [[(gram, k) for gram, c in Counter(ngrams(words, n)).items() for k in range(1, c + 1)] for words in said]
        for n in range(1, ORDER + 1)
    ]
    common_O = [_presence([Counter(level) for level in replies])[0] for replies in levels]
    total_RO = np.array([[max(len(words) - n, 0) for n in range(ORDER)] for words in said], dtype=np.float64)
    length_R = np.array([len(words) for words in said], dtype=np.int64)

    def each(mask_BR: Floats) -> Floats:
        correct_BRO = np.stack([(c @ (_count(c, mask_BR) > 1).astype(np.float32)).T for c in common_O], axis=-1)
        nearest_BR = _nearest_other(length_R, mask_BR)
        return bleu(correct_BRO, total_RO[None], length_R[None], nearest_BR, effective_order=True)

    return each


def _nearest_other(length_R: np.ndarray[Any, np.dtype[np.int64]], mask_BR: Floats) -> Floats:
    """The length nearest to each reply's among the others of its sample, the shorter of two as near; [B, R]."""
    lengths_L, place_R = np.unique(length_R, return_inverse=True)
    count_BL = np.stack([mask_BR[:, place_R == at].sum(axis=1) for at in range(len(lengths_L))], axis=1)
    none = 10.0**9
    here_BL = np.where(count_BL > 0, lengths_L, -none)
    below_BL = np.maximum.accumulate(here_BL, axis=1)
    above_BL = np.minimum.accumulate(np.where(count_BL > 0, lengths_L, none)[:, ::-1], axis=1)[:, ::-1]
    edge_B1 = np.full((len(mask_BR), 1), none)
    below_BL = np.concatenate([-edge_B1, below_BL[:, :-1]], axis=1)
    above_BL = np.concatenate([above_BL[:, 1:], edge_B1], axis=1)
    outside_BL = np.where(lengths_L - below_BL <= above_BL - lengths_L, below_BL, above_BL)
    nearest_BL = np.where(count_BL > 1, lengths_L, outside_BL)
    return np.where(np.abs(nearest_BL) < none, nearest_BL, 0.0)[:, place_R]  # an only reply has no other


def ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    """The n-grams of one text, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _presence(marks: Iterable[Iterable[Hashable]]) -> tuple[Any, Floats]:
    """Which reply has which mark: a sparse 0/1 matrix [R, V] of those that several replies have, and how many marks each
    reply has alone, [R]."""
    from scipy.sparse import csr_array

    sets = [list(dict.fromkeys(of)) for of in marks]
    holders = Counter(mark for of in sets for mark in of)
    column = {mark: at for at, mark in enumerate(mark for mark, held in holders.items() if held > 1)}
    kept = [[column[mark] for mark in of if mark in column] for of in sets]
    starts = np.cumsum([0, *map(len, kept)])
    places = np.array([at for of in kept for at in of], dtype=np.int64)
    common_RV = csr_array(
        (np.ones(len(places), dtype=np.float32), places, starts), shape=(len(sets), max(len(column), 1))
    )
    return common_RV, np.array([len(of) - len(some) for of, some in zip(sets, kept, strict=True)], dtype=np.float64)


def _count(common_RV: Any, mask_BR: Floats) -> Floats:
    """How many replies of each sample have each mark, [V, B]."""
    return common_RV.T @ mask_BR.T.astype(np.float32)
