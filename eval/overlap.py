"""Lexical overlap with the therapist's own reply."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score import rouge_scorer


def rouge1(replies: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-1 F1 (Lin 2004), in [0, 1], without stemming, of pairs in order."""
    scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=False)
    pairs = list(zip(references, replies, strict=True))
    return sum(scorer.score(reference, reply)["rouge1"].fmeasure for reference, reply in pairs) / len(pairs)
