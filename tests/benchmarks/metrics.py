"""Speed of `eval.metrics.measure` against calling the libraries; README.md beside this file says how to read it."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

from bert_score import BERTScorer
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, sentence_bleu

from eval.metrics import Instruments, Pair, measure
from rewards.encoder import encoder_source
from rewards.words import words
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.types import Speaker


class _NoSynonyms:
    def synsets(self, word: str) -> list[object]:
        return []


def pairs(count: int) -> list[Pair]:
    """`count` of the sample's replies, each beside another one's, no two alike."""
    said = [t.text for d in load(CorpusConfig()).train for t in d.turns if t.speaker is Speaker.THERAPIST]
    both = itertools.islice(
        ((a, said[(7 * i + k) % len(said)]) for k in range(1, 99) for i, a in enumerate(said)), count
    )
    return [Pair(f"p{i}#1", "", (), reply, reference) for i, (reply, reference) in enumerate(both)]


def lexical(told: Sequence[Pair]) -> None:
    """What a script would do."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for pair in told:
        scorer.score(pair.reference, pair.reply)
        sentence_bleu(pair.reply, [pair.reference])
        meteor_score([list(words(pair.reference))], list(words(pair.reply)), wordnet=_NoSynonyms())
    corpus_bleu([pair.reply for pair in told], [[pair.reference for pair in told]])


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of their ratio round by round (theirs / ours: above 1, ours is faster)."""
    took = []
    for place in range(rounds):
        order = (ours, theirs) if place % 2 else (theirs, ours)
        seconds = {}
        for call in order:
            began = time.perf_counter()
            call()
            seconds[call] = time.perf_counter() - began
        took.append((seconds[ours], seconds[theirs]))
    return median(a for a, _ in took), median(b for _, b in took), median(b / a for a, b in took)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    told = pairs(given.pairs)
    instruments = Instruments()
    names = ["rouge_1", "rouge_2", "rouge_l", "bleu", "sentence_bleu", "meteor_nosyn"]
    ours, theirs, faster = ratio(lambda: measure(names, told, instruments), lambda: lexical(told), given.rounds)
    speeds = f"{len(told) / ours:.0f} pairs/s, the libraries {len(told) / theirs:.0f}"
    print(f"{len(told)} pairs, {', '.join(names)}: {speeds}: ratio {faster:.3f}")
    config = instruments.config.bertscore
    scorer = BERTScorer(model_type=encoder_source(config.model), num_layers=config.layers, batch_size=config.batch_size)
    texts = [pair.reply for pair in told], [pair.reference for pair in told]
    measure(["bertscore_f1"], told[:8], instruments)
    ours, theirs, faster = ratio(
        lambda: measure(["bertscore_f1"], told, instruments),
        lambda: scorer.score(*texts, batch_size=config.batch_size),
        max(given.rounds // 2, 3),
    )
    print(
        f"{len(told)} pairs, BERTScore: {len(told) / ours:.0f} pairs/s, the library {len(told) / theirs:.0f}: ratio {faster:.3f}"
    )


if __name__ == "__main__":
    main()
