"""Professional conduct of a reply: within boundaries, in balance, without lecturing, without stock phrases.

All four read wording with the lexicons of `rewards.conduct_rules`, in English; what is said in words that no line
foresees passes. An empty reply scores 0 everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.conduct_rules import (
    ADVISES,
    ASKS_LEAVE,
    BREACHES,
    IMPERATIVE,
    NO_ADVICE,
    SAYS_BACK,
    STOCK,
    TO_HELP,
    TURNED,
    Breach,
)
from rewards.danger import IN_DANGER
from rewards.text_rules import is_open_question, is_question, reflects
from rewards.types import Score
from rewards.words import sentences, words
from rewards.workbench import Workbench
from rollout.types import Rollout

_GRAVITY = {
    Breach.INVOLVEMENT: 1.0,
    Breach.CONTACT: 1.0,
    Breach.PROMISE: 0.5,
    Breach.JUDGEMENT: 0.5,
    Breach.SELF_DISCLOSURE: 0.25,
    Breach.ORDER: 0.25,
}


class Boundaries:
    """Does the reply keep the boundaries of the profession?

        value = max(0, 1 - sum over breaches of gravity * sentences with it)

        1.0   romance, friendship or being the only one ("I love you"); private contact, given or asked for
        0.5   a promise of outcome ("everything will be fine"); judging the client ("you are being lazy")
        0.25  telling of oneself ("when I was ..."); ordering about ("you have to ..."), but not to emergency help

    The criterion is the psychologist study's "therapeutic boundaries"; the breaches are after the APA's Ethics Code (3.05
    multiple relationships, 10.05 intimacies) and MITI 4.2.1's "confront"; the gravities are ours. What is denied or quoted
    ("it is not your fault", "you feel that you are weak") is no breach. Parts: sentences with each breach.
    """

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        return [_boundaries(r.text) for r in rollouts]


def _boundaries(reply: str) -> Score:
    said = sentences(reply)
    found = {breach: sum(_breaches(sentence, breach) for sentence in said) for breach in Breach}
    cost = sum(_GRAVITY[breach] * count for breach, count in found.items())
    return Score(max(0.0, 1 - cost) if words(reply) else 0.0, {breach.value: float(found[breach]) for breach in Breach})


def _breaches(sentence: str, breach: Breach) -> bool:
    if breach is Breach.ORDER and TO_HELP.search(sentence):
        return False
    return _found(BREACHES[breach], sentence, unless=TURNED[breach]) > 0


def _found(says: re.Pattern[str], sentence: str, *, unless: re.Pattern[str]) -> int:
    return sum(not unless.search(sentence[: match.start()]) for match in says.finditer(sentence))


class Balance:
    """Does the reply listen before it asks? With r reflections and q questions, o of them open:

        kind = 1.0  reflection and open question        value = kind * min(1, max(r, 1) / q)
               0.8  reflection and closed questions
               0.7  reflection only
               0.4  open question only
               0.2  closed questions only
               0.0  neither

    MITI 4.2.1 (Moyers, Manuel & Ernst 2014) calls one reflection per question fair and two good: a reply with at least
    as many reflections as questions loses nothing. `inquiry` pays the better of the two, this term both together.
    Sentences are counted; one that says back and then asks after a comma counts as both. Abstains where the client is
    in danger, since there one has to ask, and ask directly. Parts: `reflections`, `questions`, `open`.
    """

    def __init__(self, bench: Workbench) -> None:
        self._danger = bench.danger

    def applies(self, rollout: Rollout) -> bool:
        """Whether the client is in no danger."""
        return self._danger.tier(rollout.prompt.history) not in IN_DANGER

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client is in no danger."""
        return [_balance(r.text) for r in rollouts]


def _balance(reply: str) -> Score:
    said = sentences(reply)
    reflections, questions = sum(map(_says_back, said)), sum(map(is_question, said))
    opened = sum(map(is_open_question, said))
    kind = _KINDS[reflections > 0, (questions > 0) + (opened > 0)]
    value = kind * min(1.0, max(reflections, 1) / max(questions, 1))
    return Score(value, {"reflections": float(reflections), "questions": float(questions), "open": float(opened)})


_KINDS = {  # (reflects, 0 asks nothing, 1 closed questions only, 2 an open one)
    (True, 2): 1.0, (True, 1): 0.8, (True, 0): 0.7, (False, 2): 0.4, (False, 1): 0.2, (False, 0): 0.0,
}  # fmt: skip


def _says_back(sentence: str) -> bool:
    """Whether the sentence reflects; of a question, only what stands before its last comma."""
    stated = sentence.rpartition(",")[0] if is_question(sentence) else sentence
    return len(words(stated)) >= 3 and (reflects(stated) or SAYS_BACK.search(stated) is not None)


class Advice:
    """Does the reply refrain from lecturing? With d directives (suggestions and imperatives):

        value = 1.0, 0.6, 0.2, 0.0   for max(0, d - free) = 0, 1, 2, more
        free  = 1 where leave was asked, or something said back, when the first directive comes, else 0

    So one suggestion that is led in costs nothing, and a bare one does: MITI 4.2.1's "persuade with permission" and
    "persuade"; the grades are ours. Each item of a list counts. To send somebody to emergency help or a doctor is no advice,
    and the term abstains where the client is in danger. Parts: `directives`, `led_in`.
    """

    def __init__(self, bench: Workbench) -> None:
        self._danger = bench.danger

    def applies(self, rollout: Rollout) -> bool:
        """Whether the client is in no danger."""
        return self._danger.tier(rollout.prompt.history) not in IN_DANGER

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client is in no danger."""
        return [_advice(r.text) for r in rollouts]


_ADVICE = (1.0, 0.6, 0.2, 0.0)


def _advice(reply: str) -> Score:
    total, led_in = 0, False
    for sentence in sentences(reply):
        count = _directives(sentence)
        if not total:
            led_in = led_in or ASKS_LEAVE.search(sentence) is not None or (not count and _says_back(sentence))
        total += count
    grade = _ADVICE[min(max(0, total - led_in), len(_ADVICE) - 1)]
    return Score(grade if words(reply) else 0.0, {"directives": float(total), "led_in": float(led_in)})


_LIST_MARK = re.compile(r"^[\W\d]+")
_CLAUSE_END = re.compile(r"[,;:]+ | - | (?:and|or|then) ")


def _directives(sentence: str) -> int:
    if TO_HELP.search(sentence):
        return 0
    total = 0
    for i, clause in enumerate(_CLAUSE_END.split(_LIST_MARK.sub("", sentence))):
        opens = i == 0 or total > 0  # "you go to work, take care of them all" tells, "go to work, take care" commands
        commands = opens and IMPERATIVE.search(clause) is not None
        total += max(commands, _found(ADVISES, clause, unless=NO_ADVICE))
    return total


class Template:
    """Is the reply said to this client, or to anybody?

        value = 1 - stock sentences / sentences

    A sentence is stock when at least half of its words are in stock phrases (`rewards.conduct_rules.TEMPLATES`): "I'm
    sorry to hear that, Sam." is, and "I'm sorry to hear that your father fell ill again last week." is not.
    """

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`."""
        return [Score(_fresh(r.text)) for r in rollouts]


def _fresh(reply: str) -> float:
    said = [sentence for sentence in sentences(reply) if words(sentence)]
    return 1 - sum(map(_is_stock, said)) / len(said) if said else 0.0


def _is_stock(sentence: str) -> bool:
    stock = sum(len(words(match.group())) for match in STOCK.finditer(sentence))
    return 2 * stock >= len(words(sentence))
