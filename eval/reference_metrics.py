"""Metrics that compare a reply with the therapist's own. An empty reply is 0 in all of them, and never left out."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

import numpy as np

from eval.bleu import ORDER, bleu
from eval.figures import Floats, Measured, quotient
from eval.instruments import Readings
from eval.metric import Better, Metric, Need, metric
from rewards.overlap import Meteor, MeteorNoSyn, rouge_f1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _rouge(kind: str, what: str) -> Metric:
    def read(readings: Readings, name: str) -> Measured:
        return readings.ledger.mean(name, [found[kind] for found in readings.rouge])

    text = (
        f"ROUGE F1 (Lin 2004) of {what}, by rouge-score, mean over replies. Lower case, letters a-z and digits only; "
        "no stemming unless `stemmer` is set."
    )
    name = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}[kind]
    return metric(read, name, Need.REFERENCE, better=Better.HIGHER, unit="F1, 0 to 1", text=text)


def _beam_rouge_1(readings: Readings, name: str) -> Measured:
    """ChatMGL's "beam ROUGE-1": mean ROUGE-1 F1 x 100, never stemmed. The beams are the decoder's: measure the replies of
    each beam size as an arm of its own."""
    f1 = rouge_f1("rouge1")
    return readings.ledger.mean(name, [f1(p.reply, p.reference)["rouge1"] for p in readings.pairs], scale=100)


def _bleu(readings: Readings, name: str) -> Measured:
    """Corpus BLEU-4 (Papineni et al. 2002) as sacrebleu's corpus_bleu with its defaults (13a tokens, case kept, exponential
    smoothing), divided by 100. The replies' own values are `sentence_bleu`."""
    counts = [[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in readings.bleu]
    return readings.ledger.sums(name, [score.score / 100 for score in readings.bleu], counts, _corpus_bleu)


def _corpus_bleu(sums_BS: Floats) -> Floats:
    correct_BO, total_BO, (said_B, wanted_B) = sums_BS[:, :ORDER], sums_BS[:, ORDER : 2 * ORDER], sums_BS[:, -2:].T
    return bleu(correct_BO, total_BO, said_B, wanted_B, effective_order=False)


def _sentence_bleu(readings: Readings, name: str) -> Measured:
    """Mean over replies of sacrebleu's sentence BLEU-4 (13a tokens, case kept, exponential smoothing, effective order),
    divided by 100. The reward's term `bleu` is in lower case."""
    return readings.ledger.mean(name, [score.score / 100 for score in readings.bleu])


class MeteorBy(Meteor):
    """The reward's METEOR with a WordNet that is open already."""

    def __init__(self, wordnet: Any) -> None:
        self._wordnet = wordnet


def _meteor(readings: Readings, name: str) -> Measured:
    """METEOR (Banerjee & Lavie 2005) as NLTK's, alpha .9, beta 3, gamma .5, with exact, stem and WordNet-synonym matches
    of the words as the rewards read them, mean over replies."""
    return _meteor_by(MeteorBy(readings.instruments.wordnet), readings, name)


def _meteor_nosyn(readings: Readings, name: str) -> Measured:
    """`meteor` without synonyms, exact and stem matches only: another metric, lower than METEOR."""
    return _meteor_by(MeteorNoSyn(readings.instruments.bench), readings, name)


def _meteor_by(term: Meteor, readings: Readings, name: str) -> Measured:
    return readings.ledger.mean(name, [term.of(pair.reply, pair.reference) for pair in readings.pairs])


def _bertscore(part: str) -> Metric:
    at = ("precision", "recall", "f1").index(part)

    def read(readings: Readings, name: str) -> Measured:
        return readings.ledger.mean(name, [found[at] for found in readings.bertscore])

    text = (
        f"BERTScore {part} (Zhang et al. 2020, arXiv:1904.09675) by bert-score, without idf and rescaling, of the encoder "
        "and layer of `bertscore`, mean over replies. Unscaled values are high for any English: read differences."
    )
    unit = "cosine, up to 1"
    return metric(read, f"bertscore_{part}", Need.REFERENCE, better=Better.HIGHER, unit=unit, text=text)


def _token_f1(readings: Readings, name: str) -> Measured:
    """Token F1 as SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250), mean over replies. Both texts: lower case, ASCII
    punctuation dropped (so "don't" is "dont"), the words a, an, the dropped, split at white space."""
    return readings.ledger.mean(name, [token_f1(pair.reply, pair.reference) for pair in readings.pairs])


def token_f1(reply: str, reference: str) -> float:
    """2 PR / (P + R) of the bags of tokens, in [0, 1]; 0 for an empty reply. Where normalisation leaves nothing of one
    text it is 1 if nothing is left of the other either, as in SQuAD 2."""
    if not reply.strip():
        return 0.0
    said, wanted = squad_tokens(reply), squad_tokens(reference)
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (Counter(said) & Counter(wanted)).total() / (len(said) + len(wanted))


def squad_tokens(text: str) -> list[str]:
    """The tokens of SQuAD's normalize_answer."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _perplexity(readings: Readings, name: str) -> Measured:
    """exp(-sum of log-probs / tokens) over all replies' tokens together, of the log-probs given in `Pair.logprobs`. Models
    with different tokenizers cannot be compared by it."""
    rows = np.array([[-sum(pair.logprobs), len(pair.logprobs)] for pair in readings.pairs])
    return readings.ledger.sums(name, _exp_mean(rows), rows, _exp_mean)


def _exp_mean(rows_XS: Floats) -> Floats:
    with np.errstate(over="ignore"):  # a mean of 710 nats is a perplexity of inf
        return np.exp(quotient(rows_XS[:, 0], rows_XS[:, 1], nothing=np.nan))


_HIGH = Better.HIGHER
_OF_ONE = "0 to 1"
REFERENCE_METRICS = (
    _rouge("rouge1", "words"),
    _rouge("rouge2", "pairs of words"),
    _rouge("rougeL", "the longest common subsequence of words"),
    metric(_beam_rouge_1, "beam_rouge_1", Need.REFERENCE, better=_HIGH, unit="F1 x 100"),
    metric(_bleu, "bleu", Need.REFERENCE, better=_HIGH, unit=_OF_ONE),
    metric(_sentence_bleu, "sentence_bleu", Need.REFERENCE, better=_HIGH, unit=_OF_ONE),
    metric(_meteor, "meteor", Need.REFERENCE, Need.WORDNET, better=_HIGH, unit=_OF_ONE),
    metric(_meteor_nosyn, "meteor_nosyn", Need.REFERENCE, better=_HIGH, unit=_OF_ONE),
    *map(_bertscore, ("precision", "recall", "f1")),
    metric(_token_f1, "token_f1", Need.REFERENCE, better=_HIGH, unit="F1, 0 to 1"),
    metric(_perplexity, "perplexity", Need.LOGPROBS, better=Better.LOWER, unit="per token, from 1"),
)
