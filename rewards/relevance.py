"""Does a reply answer this conversation, and no other? Sentence embeddings of what the reply says in words of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.encoder import SentenceEncoder
from rewards.types import Score
from rewards.words import normalise, words
from rewards.workbench import Workbench
from rollout.types import Dialogue, Rollout, Speaker, Turn

if TYPE_CHECKING:
    from torch import Tensor

_FUNCTION_WORDS = frozenset(
    words("""
    a about after again all also am an and any are arent as at be because been before being but by can cant could
    couldnt did didnt do does doesnt doing dont down for from had has hasnt have havent having he her here hers him his
    how i id if ill im in into is isnt it its ive just like me more most much my myself no nor not now of off ok okay on
    once only or other our out over own really shall she should so some such than that thats the their them then there
    these they theyre this those through to too under until up us very was wasnt we well were what whats when where
    which while who whom why will with wont would yes you youd youll your youre yours yourself youve
    """)
)
_MIRRORED = {
    "i": "you", "me": "you", "im": "youre", "ive": "youve", "id": "youd", "ill": "youll", "my": "your",
    "mine": "yours", "myself": "yourself", "am": "are", "was": "were",
}  # fmt: skip
_COPIED = 4  # words in a row that are said to be copied
_ENOUGH_NEW = 0.3  # of 500 replies in ESConv's test split 95 % have this share of new content words,
_ENOUGH_PROSE = 0.3  # and 99 % of those of eight words or more this share of function words
_FOREIGN, _OWN = 0.1, 0.4  # their mean cosine: median with clients of other dialogues, upper quartile with their own
_FAR = 3.0  # standard deviations


@dataclass(frozen=True)
class _Answer:
    """A reply's own part: its unit `vector [D]`, its `likeness` to the conversation (a cosine), and the `credit` in
    [0, 1] that copies and lists leave it."""

    vector: Tensor
    likeness: float
    credit: float


class Relevance:
    """Does the reply speak of what this client speaks of?

        c     = (cos(reply, last client turn) + cos(reply, whole history)) / 2     sentence embeddings
        value = credit * clip((c - 0.1) / (0.4 - 0.1), 0, 1)
        credit = min(1, new / 0.3) * min(1, prose / 0.3)

    0.1 is the median c of ESConv's supporters with clients of other dialogues, 0.4 the upper quartile with their own
    (500 replies of its test split; half of them score above 0.63). The history is read newest turn first, as the encoder
    cuts what is too long.

    Only the reply's own part is embedded: four words in a row that were said before, "I" and "you" exchanged or not, are
    cut out of it. `new` is the share of the reply's content words that nobody said before, `prose` that of function
    words, one added, among all its words: who hands back the client's words, in any order, or lists key words, is not
    answering. A reply with nothing of its own scores 0. Abstains where the client has said nothing yet.
    """

    def __init__(self, bench: Workbench) -> None:
        self._encoder = bench.encoder

    def applies(self, rollout: Rollout) -> bool:
        """Whether there are words to answer."""
        return bool(words(rollout.prompt.last_client_turn))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client has spoken; parts: `cosine` (c) and `credit`."""
        return [
            _scored(answer, "cosine", answer.likeness, zero=_FOREIGN, full=_OWN)
            for answer in _answers(self._encoder, rollouts)
        ]


class Specificity:
    """Is the reply meant for this client rather than for anybody?

        z     = (c - mean of cos(reply, b)) / std of cos(reply, b)     over the bank's turns b
        value = credit * clip(z / 3, 0, 1)                             c, credit and own part as in `Relevance`

    z is the standard score of the reply's own conversation among strangers' turns: 0 for a reply that would do for any
    of them, 3 for one that hardly another turn could have called for. The bank is the longest client turn of each
    dialogue of the shipped sample (64), less those that this client said. Of ESConv's supporters half score above 0.73
    with their own clients, and half 0 with those of other dialogues. Abstains where the client has said nothing yet.
    """

    def __init__(self, bench: Workbench) -> None:
        from rollout.config import CorpusConfig
        from rollout.corpora import load

        self._encoder = bench.encoder
        sample = load(CorpusConfig(format="sample"))
        bank = sorted({_longest_client_turn(dialogue) for split in sample.splits.values() for dialogue in split})
        self._said = [normalise(text) for text in bank]
        # Texts that were read before would change the batches, and with them the last bits of the bank.
        self._encoder.forget()
        self._bank_ND = self._encoder.embed(bank)
        self._encoder.forget()

    def applies(self, rollout: Rollout) -> bool:
        """Whether there are words to answer."""
        return bool(words(rollout.prompt.last_client_turn))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client has spoken; parts: `z` and `credit`."""
        return [
            _scored(answer, "z", self._standing(answer, rollout.prompt.history), zero=0.0, full=_FAR)
            for rollout, answer in zip(rollouts, _answers(self._encoder, rollouts), strict=True)
        ]

    def _standing(self, answer: _Answer, history: Sequence[Turn]) -> float:
        client = normalise(" ".join(turn.text for turn in history if turn.speaker is Speaker.CLIENT))
        others = [i for i, said in enumerate(self._said) if said not in client]
        likeness = (self._bank_ND @ answer.vector)[others]
        return float((answer.likeness - likeness.mean()) / likeness.std())


def _scored(answer: _Answer, name: str, found: float, *, zero: float, full: float) -> Score:
    """`found` on the way from `zero` to `full`, as far as the answer deserves credit."""
    share = max(min((found - zero) / (full - zero), 1.0), 0.0)  # in this order a NaN stays one, and is refused
    return Score(answer.credit * share, {name: found, "credit": answer.credit})


def _longest_client_turn(dialogue: Dialogue) -> str:
    return max((t.text for t in dialogue.turns if t.speaker is Speaker.CLIENT), key=lambda text: (len(text), text))


def _answers(encoder: SentenceEncoder, rollouts: Sequence[Rollout]) -> list[_Answer]:
    """What each reply says in words of its own. Where that is nothing the whole reply is read, for no credit."""
    own = [own_part(r.text, r.prompt.history) for r in rollouts]
    asked = [(r.prompt.last_client_turn, "\n".join(t.text for t in reversed(r.prompt.history))) for r in rollouts]
    known = encoder.read(text for (said, _), turns in zip(own, asked, strict=True) for text in (said, *turns))
    answers = []
    for (said, credit), (last, history) in zip(own, asked, strict=True):
        vector = known[said].vector
        likeness = float(vector @ known[last].vector + vector @ known[history].vector) / 2
        answers.append(_Answer(vector, likeness, credit))
    return answers


def own_part(reply: str, history: Sequence[Turn]) -> tuple[str, float]:
    """`reply` without what it copies from `history`, and the credit in [0, 1] that it deserves; see `Relevance`.

    Where no word is left, the whole reply, and no credit.
    """
    before = [[_MIRRORED.get(word, word) for word in words(turn.text)] for turn in history]
    grams = {gram for said in before for gram in _ngrams(said)}
    chunks = [(chunk, words(chunk)) for chunk in reply.split()]
    told = [word for _, spoken in chunks for word in spoken]
    copied = [False] * len(told)
    for start, gram in enumerate(_ngrams([_MIRRORED.get(word, word) for word in told])):
        if gram in grams:
            copied[start : start + _COPIED] = [True] * _COPIED
    left, at = list[str](), 0
    for chunk, spoken in chunks:
        if not any(copied[at : at + len(spoken)]):
            left.append(chunk)
        at += len(spoken)
    text = " ".join(left)
    return (text, _credit(told, {word for said in before for word in said})) if words(text) else (reply, 0.0)


def _ngrams(told: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(told[start : start + _COPIED]) for start in range(len(told) - _COPIED + 1)]


def _credit(told: Sequence[str], before: set[str]) -> float:
    content = [word for word in told if word not in _FUNCTION_WORDS]
    new = sum(word not in before for word in content) / len(content) if content else 1.0
    prose = (len(told) - len(content) + 1) / len(told)
    return min(1.0, new / _ENOUGH_NEW) * min(1.0, prose / _ENOUGH_PROSE)
