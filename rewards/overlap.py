"""Lexical agreement with the therapist's own reply: ROUGE, BLEU, METEOR, and READER's combination.

All are 0 for an empty reply and abstain where the prompt has no reference. They pay for the therapist's words, not for the
therapist's skill: small weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.classifiers import DialogueAct
from rewards.similarity import Similarity
from rewards.types import Score
from rewards.wordnet import open_wordnet
from rewards.words import words
from rewards.workbench import Workbench
from rollout.types import Rollout


class Overlap(ABC):
    """A term that compares the reply's words with the reference's."""

    def applies(self, rollout: Rollout) -> bool:
        """Whether there is a reference to compare with."""
        return bool(rollout.prompt.reference.strip())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, all of which have a reference."""
        return [Score(self.of(r.text, r.prompt.reference) if words(r.text) else 0.0) for r in rollouts]

    @abstractmethod
    def of(self, reply: str, reference: str) -> float:
        """The agreement in [0, 1] of two texts with words in them."""


class Rouge(Overlap):
    """ROUGE-L F1 (Lin 2004): the longest common subsequence of words, without stemming, as the package rouge-score."""

    def __init__(self, bench: Workbench) -> None:
        self._f1 = rouge_f1("rougeL")

    def of(self, reply: str, reference: str) -> float:
        """See `Overlap`."""
        return self._f1(reply, reference)["rougeL"]


class Bleu(Overlap):
    """Sentence BLEU-4 (Papineni et al. 2002) as sacrebleu's `sentence_bleu`: exponential smoothing, effective order, 13a
    tokens, here in lower case; divided by 100."""

    def __init__(self, bench: Workbench) -> None:
        self._bleu = sentence_bleu(order=4)

    def of(self, reply: str, reference: str) -> float:
        """See `Overlap`."""
        return self._bleu(reply, reference)


class Meteor(Overlap):
    """METEOR (Banerjee & Lavie 2005) as NLTK's, alpha .9, beta 3, gamma .5: exact, stem and WordNet-synonym matches.

    Raises ValueError when `rewards.meteor.wordnet` holds no WordNet: leaving synonyms out would be another metric under
    the same name, which is `meteor_nosyn`.
    """

    def __init__(self, bench: Workbench) -> None:
        self._wordnet = open_wordnet(Path(bench.config.meteor.wordnet).expanduser())

    def of(self, reply: str, reference: str) -> float:
        """See `Overlap`."""
        from nltk.translate.meteor_score import single_meteor_score

        return float(single_meteor_score(words(reference), words(reply), wordnet=self._wordnet))


class MeteorNoSyn(Meteor):
    """METEOR without synonyms: exact and stem matches only."""

    def __init__(self, bench: Workbench) -> None:
        self._wordnet = _NoSynonyms()


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        """None of any word."""
        return []


class Reader:
    """READER's reward, divided by the sum of its weights so that it lies in [0, 1]:

        (similarity + 0.1 p(act) + BLEU-1 + ROUGE-1 + 4 ROUGE-2 + 2 ROUGE-L) / 9.1

    Similarity is the cosine of sentence embeddings, p(act) the probability of the therapist's dialogue act; without an act
    head, or an annotated act, that part is left out and the divisor is 9. READER takes the act's logit, which has no
    bounds. Parts are noted.
    """

    WEIGHTS: Mapping[str, float] = {"similarity": 1, "act": 0.1, "bleu1": 1, "rouge1": 1, "rouge2": 4, "rougeL": 2}

    def __init__(self, bench: Workbench) -> None:
        self._similarity = Similarity(bench)
        head = bench.config.reader.act_head
        self._act = DialogueAct(bench, head, knob="reader.act_head") if head else None
        self._rouge = rouge_f1("rouge1", "rouge2", "rougeL")
        self._bleu1 = sentence_bleu(order=1)

    def applies(self, rollout: Rollout) -> bool:
        """Whether there is a reference to compare with."""
        return self._similarity.applies(rollout)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, all of which have a reference."""
        alike = self._similarity.score(rollouts)
        known = [i for i, r in enumerate(rollouts) if self._act and self._act.applies(r)]
        acts = self._act.score([rollouts[i] for i in known]) if self._act else []
        act = dict(zip(known, acts, strict=True))
        scores = []
        for i, rollout in enumerate(rollouts):
            said, reference = rollout.text, rollout.prompt.reference
            lexical = {"bleu1": self._bleu1(said, reference), **self._rouge(said, reference)} if words(said) else {}
            parts = dict.fromkeys(("bleu1", "rouge1", "rouge2", "rougeL"), 0.0) | lexical
            parts |= {"similarity": alike[i].value} | ({"act": act[i].value} if i in act else {})
            total = sum(self.WEIGHTS[name] * part for name, part in parts.items())
            scores.append(Score(min(total / sum(self.WEIGHTS[name] for name in parts), 1.0), parts))
        return scores


def rouge_f1(*kinds: str) -> Any:
    """(reply, reference) -> {kind: F1 in [0, 1]}, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(kinds), use_stemmer=False)
    return lambda reply, reference: {k: s.fmeasure for k, s in scorer.score(reference, reply).items()}


def sentence_bleu(order: int) -> Any:
    """(reply, reference) -> sentence BLEU of n-grams up to `order`, in [0, 1], lower-cased."""
    from sacrebleu import BLEU

    bleu = BLEU(lowercase=True, max_ngram_order=order, effective_order=True)
    return lambda reply, reference: min(bleu.sentence_score(reply, [reference]).score / 100, 1.0)
