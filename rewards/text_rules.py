"""Rules on the reply's wording: does it inquire, is it as long as a turn, does it repeat itself?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rewards.config import LengthConfig, RepetitionConfig
from rewards.types import Score
from rewards.words import phrases, sentences, words
from rollout.types import Rollout

_OPENS = re.compile(r"(?:^|[,;:-] |\b(?:so|and|but) )(?:whats?|hows?|why|in what way)\b")
_OPENS_NOTHING = phrases(r"""
    how are you( (doing|today))*(?= ?\?)
    (what|how) about (you )?\w+ing|what (time|if)|how (much|many|old|long|often|far)|why dont
""")
_INVITES = phrases(r"""
    tell me|help me understand|walk me through|describe
    (say|share|tell|talk|know|hear) (\w+ ){0,3}(more|about)
""")
_INVITES_AT_ONCE = re.compile(r"^(?:please |so |and )*(?:tell me|help me understand|walk me through|describe)\b")
_REFLECTS = phrases(r"""
    (sounds|seems|feels|looks) (like|as if|as though|to me)|it (sounds|seems)
    what im hearing|i( can)? (hear|sense) (that |how )?you|i get the sense|if i understand|in other words
    you(re| are)? (feel|feeling) .*(because|since|about|when)|you seem|(so|then) you(re|ve| are| have(?! to)| feel)
""")
_OPEN_QUESTION, _REFLECTION, _CLOSED_QUESTION, _NEITHER = 1.0, 0.8, 0.5, 0.0
_WELCOME_QUESTIONS = 2
_FEWEST_WORDS = 3


class Inquiry:
    """Does the reply help the client to say more (motivational interviewing's open questions and reflections)?

        1.0  an open question or an invitation: what, how, why, "tell me", "could you say more"
        0.8  a reflection: "it sounds like ...", "you feel ... because ..."
        0.5  a closed question only
        0.0  neither

    The best counts. With q > 2 questions it is multiplied by 2 / q: an interrogation is not an inquiry. A sentence of
    fewer than three words earns nothing.
    """

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        return [Score(_inquiry(r.text)) for r in rollouts]


def _inquiry(reply: str) -> float:
    said = sentences(reply)
    best = max((_inquiry_of_sentence(sentence) for sentence in said), default=_NEITHER)
    questions = sum(map(is_question, said))
    return best * min(1.0, _WELCOME_QUESTIONS / max(questions, 1))


def _inquiry_of_sentence(sentence: str) -> float:
    if is_open_question(sentence):
        return _OPEN_QUESTION
    if reflects(sentence):
        return _REFLECTION
    return _CLOSED_QUESTION if is_question(sentence) and len(words(sentence)) >= _FEWEST_WORDS else _NEITHER


def is_question(sentence: str) -> bool:
    """Whether a normalised sentence asks, or invites the client to tell."""
    return "?" in sentence or _INVITES_AT_ONCE.search(sentence) is not None


def is_open_question(sentence: str) -> bool:
    """Whether a normalised sentence asks for more than a yes, a no or a number."""
    if len(words(sentence)) < _FEWEST_WORDS or not is_question(sentence):
        return False
    opens = _OPENS.search(sentence) is not None and _OPENS_NOTHING.search(sentence) is None
    return opens or _INVITES.search(sentence) is not None


def reflects(sentence: str) -> bool:
    """Whether a normalised sentence, or a clause of one, says back what was heard in one of the usual frames."""
    return len(words(sentence)) >= _FEWEST_WORDS and _REFLECTS.search(sentence) is not None


class Length:
    """1 for a reply of [low, high] words; outside, it falls linearly to 0 over `band` words; an empty reply is 0."""

    def __init__(self, config: LengthConfig) -> None:
        self._config = config

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        return [Score(self._of(len(words(r.text)))) for r in rollouts]

    def _of(self, count: int) -> float:
        outside = max(self._config.low - count, count - self._config.high, 0)
        return max(0.0, 1 - outside / self._config.band) if count else 0.0


class Repetition:
    """Freshness, the smaller of two shares; an empty reply is 0.

        within   distinct n-grams / n-grams of the reply's words
        among    1 - (other replies to the same prompt with the same words) / (other replies to the same prompt)

    A reply shorter than 2 n words is judged by n-grams of half its length, so that "no no" repeats itself and a short
    plain sentence does not. An only reply has `among` = 1.
    """

    def __init__(self, config: RepetitionConfig) -> None:
        self._ngram = config.ngram

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`; the replies to a prompt are compared with one another."""
        said = [(r.prompt.id, tuple(words(r.text))) for r in rollouts]
        same, siblings = Counter(said), Counter(prompt for prompt, _ in said)
        scores = []
        for prompt, reply in said:
            among = 1 - (same[prompt, reply] - 1) / max(siblings[prompt] - 1, 1)
            scores.append(Score(min(_distinct(reply, self._ngram), among)))
        return scores


def _distinct(reply: Sequence[str], ngram: int) -> float:
    if not reply:
        return 0.0
    n = min(ngram, max(1, len(reply) // 2))
    ngrams = [tuple(reply[i : i + n]) for i in range(len(reply) - n + 1)]
    return len(set(ngrams)) / len(ngrams)
