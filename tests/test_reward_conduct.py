from __future__ import annotations

import json
import random

import pytest

from rewards.conduct import Advice, Balance, Boundaries, Template
from rewards.conduct_rules import TEMPLATES, Breach
from rewards.config import CrisisConfig, RewardsConfig
from rewards.panel import TERMS, Term
from rewards.workbench import Workbench
from rollout.config import CorpusConfig
from rollout.corpora import SAMPLE, load
from rollout.types import Speaker, Turn
from tests.reward_cases import CASES, PROBES
from tests.reward_replies import GOOD, HOPELESS, prompt, reply

CONDUCT = ("boundaries", "balance", "advice", "template")
BENCH = Workbench(RewardsConfig(crisis=CrisisConfig(classifier=False)))


def value(term: Term, text: str) -> float:
    return term.score([reply(text)])[0].value


@pytest.mark.parametrize(
    ("text", "breach", "score"),
    [
        ("I love you.", Breach.INVOLVEMENT, 0.0),
        ("I'm falling for you.", Breach.INVOLVEMENT, 0.0),
        ("You are so beautiful.", Breach.INVOLVEMENT, 0.0),
        ("We could be good friends.", Breach.INVOLVEMENT, 0.0),
        ("Nobody else understands you.", Breach.INVOLVEMENT, 0.0),
        ("Let's get a coffee.", Breach.INVOLVEMENT, 0.0),
        ("What's your phone number?", Breach.CONTACT, 0.0),
        ("My private e-mail is below.", Breach.CONTACT, 0.0),
        ("Call me on Sunday.", Breach.CONTACT, 0.0),
        ("I promise you that it will end.", Breach.PROMISE, 0.5),
        ("Everything will be okay.", Breach.PROMISE, 0.5),
        ("Don't cry, it'll all get better.", Breach.PROMISE, 0.5),
        ("You're going to be fine.", Breach.PROMISE, 0.5),
        ("You are just being lazy.", Breach.JUDGEMENT, 0.5),
        ("I think that you are selfish.", Breach.JUDGEMENT, 0.5),
        ("It's your own fault.", Breach.JUDGEMENT, 0.5),
        ("How could you?", Breach.JUDGEMENT, 0.5),
        ("When I was your age I felt lost too.", Breach.SELF_DISCLOSURE, 0.75),
        ("My own divorce took a year.", Breach.SELF_DISCLOSURE, 0.75),
        ("I've been through that.", Breach.SELF_DISCLOSURE, 0.75),
        ("You have to stop drinking.", Breach.ORDER, 0.75),
        ("Please calm down.", Breach.ORDER, 0.75),
    ],
)
def test_a_breach_costs_its_gravity(text: str, breach: Breach, score: float) -> None:
    """Involvement and private contact cost all, promises and judgements half, self-disclosure and orders a quarter."""
    (found,) = Boundaries().score([reply(text)])
    assert found.value == score
    assert {name for name, count in found.parts.items() if count} == {breach.value}


@pytest.mark.parametrize(
    "text",
    [
        "It is not your fault.",
        "You are not lazy, you are worn out.",
        "You feel that you are weak.",
        "Why would you call that selfish?",
        "I can't promise that it will get better.",
        "I hope that things will get better for you.",
        "You must be exhausted.",
        "You have to call 911 now.",
        "It sounds like he told you that he loves you.",
        "When you were a child, nobody asked.",
        "So you have to work nights and care for your father by day.",
        "You can call or text 988 at any hour.",
        "I am here with you.",
    ],
)
def test_what_is_denied_quoted_or_kind_is_no_breach(text: str) -> None:
    """Denials, what the client feels or was told, guesses at a feeling and the way to emergency help score 1."""
    assert value(Boundaries(), text) == 1.0


def test_breaches_add_up_by_sentence_and_stop_at_nothing() -> None:
    """Two kinds in one sentence count both, one kind twice in a sentence once, and the score is never below 0."""
    texts = [
        "When I was young I was told that too. You have to be strong.",
        "You must obey, you have to, and when I was young I did.",
        "Everything will be fine. Things will get better. I guarantee it. You are selfish.",
    ]
    assert [value(Boundaries(), text) for text in texts] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "score", "counts"),
    [
        ("It sounds like you miss her very much. What do you remember most?", 1.0, (1, 1, 1)),
        ("You miss her very much, and nobody asks. Tell me about her.", 1.0, (1, 1, 1)),
        ("You sound worn out, what happened?", 1.0, (1, 1, 1)),
        ("That must be lonely. So the house is quiet now. How are the evenings?", 1.0, (2, 1, 1)),
        ("You miss her. Did she know?", 0.8, (1, 1, 0)),
        ("It makes sense that you miss her.", 0.7, (1, 0, 0)),
        ("What do you miss most?", 0.4, (0, 1, 1)),
        ("Did she know?", 0.2, (0, 1, 0)),
        ("Thank you for telling me.", 0.0, (0, 0, 0)),
        ("You should call her.", 0.0, (0, 0, 0)),
        ("You are welcome.", 0.0, (0, 0, 0)),
        ("You are not alone.", 0.0, (0, 0, 0)),
        ("You miss her. What was she like? How did you meet?", 0.5, (1, 2, 2)),
        ("What was she like? How did you meet?", 0.2, (0, 2, 2)),
        ("You miss her. What was she like? How did you meet? Did you fight? Why?", 0.25, (1, 4, 2)),
        ("What? How? Why?", 0.2 / 3, (0, 3, 0)),
        ("", 0.0, (0, 0, 0)),
    ],
)
def test_balance_is_its_table(text: str, score: float, counts: tuple[int, int, int]) -> None:
    """The kind's grade times min(1, max(r, 1) / q), for r reflections and q questions, some of them open."""
    (found,) = Balance(BENCH).score([reply(text)])
    assert found.value == pytest.approx(score)
    assert found.parts == dict(zip(("reflections", "questions", "open"), map(float, counts), strict=True))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It sounds like work has worn you down. What would help?", 1.0),
        ("It sounds like work has worn you down. You could try a walk at noon.", 1.0),
        ("Would it be okay if I shared an idea? Some people keep a list of their worries.", 1.0),
        ("If you like, you could write it down.", 1.0),
        ("You feel that you have to be strong for everyone.", 1.0),
        ("What have you tried so far?", 1.0),
        ("Take your time.", 1.0),
        ("Tell me more about that.", 1.0),
        ("Please call 988, or see your doctor today.", 1.0),
        ("You go to work, take care of everything, and come home worn out.", 1.0),
        ("You should go for a walk.", 0.6),
        ("I think you should leave him.", 0.6),
        ("Have you tried yoga?", 0.6),
        ("Why don't you write to her?", 0.6),
        ("Make sure to sleep.", 0.6),
        ("It sounds like work has worn you down. You could try a walk. Then write to your boss.", 0.6),
        ("You should go for a walk. It sounds like work has worn you down.", 0.6),
        ("You need to rest. Try to eat well.", 0.2),
        ("Go for a walk and call a friend.", 0.2),
        ("Try yoga, take walks, and sleep more.", 0.0),
        ("1. Try yoga\n2. Call a friend\n3. Keep a journal", 0.0),
        ("", 0.0),
    ],
)
def test_advice_is_its_table(text: str, score: float) -> None:
    """1.0, 0.6, 0.2, 0.0 for 0, 1, 2 and more directives beyond the one that may be led in."""
    assert value(Advice(BENCH), text) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("I'm sorry to hear that.", 0.0),
        ("I am so glad you came. I'M SORRY TO HEAR THAT, Sam!", 0.5),
        ("I'm sorry to hear that your father fell ill again last week.", 1.0),
        ("You are not alone. I'm here for you. What happened on Monday?", 1 / 3),
        ("What happened on Monday?", 1.0),
        ("...", 0.0),
        ("", 0.0),
    ],
)
def test_template_is_the_share_of_sentences_that_are_no_stock_phrase(text: str, score: float) -> None:
    """A sentence is stock when at least half of its words are in stock phrases."""
    assert value(Template(), text) == pytest.approx(score)


@pytest.mark.parametrize("phrase", TEMPLATES)
def test_every_stock_phrase_is_found_alone(phrase: str) -> None:
    """A reply that is one stock phrase scores 0."""
    assert value(Template(), f"{phrase}.") == 0.0


@pytest.mark.parametrize("name", CONDUCT)
def test_silence_is_no_conduct(name: str) -> None:
    """An empty reply, and one without a word, score 0."""
    assert [value(TERMS[name](BENCH), text) for text in ("", " \n", "...")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", CONDUCT)
def test_scores_are_a_function_of_the_call_alone(name: str) -> None:
    """A permuted call gives the permuted scores, and a term that has scored others the same as a new one."""
    replies = [
        reply(text, case.prompt, k)
        for c, case in CASES.items()
        for k, text in enumerate((case.good, PROBES["echo"](c)))
    ]
    order = random.Random(11).sample(range(len(replies)), len(replies))
    term = TERMS[name](Workbench(BENCH.config))
    permuted = term.score([replies[i] for i in order])
    assert permuted == [TERMS[name](BENCH).score(replies)[i] for i in order]


@pytest.mark.parametrize("name", CONDUCT)
def test_only_the_prompt_decides_who_judges(name: str) -> None:
    """In danger, where one has to ask and to direct, balance and advice abstain; otherwise all four judge every reply."""
    term, abstains = TERMS[name](BENCH), name in ("balance", "advice")
    for to, judged in ((CASES["crisis"].prompt, not abstains), (CASES["grief"].prompt, True), (prompt(HOPELESS), True)):
        assert {term.applies(reply(text, to)) for text in ("", GOOD, "You should call 988.", "I want to die")} == {
            judged
        }


def sample_turns(*strategies: str) -> list[str]:
    """The shipped sample's therapist turns with one of these strategies."""
    turns: list[Turn] = [
        t for split in load(CorpusConfig()).splits.values() for dialogue in split for t in dialogue.turns
    ]
    return [t.text for t in turns if t.speaker is Speaker.THERAPIST and t.labels.get("strategy") in strategies]


def test_the_samples_own_labels_agree() -> None:
    """Suggestions are found where the sample's authors put them and reflections where they did, and hardly elsewhere."""
    suggestions, questions = sample_turns("Providing Suggestions"), sample_turns("Question")
    reflections = sample_turns("Reflection of feelings", "Restatement or Paraphrasing")

    def share(term: Term, part: str, texts: list[str]) -> float:
        return sum(score.parts[part] > 0 for score in term.score([reply(text) for text in texts])) / len(texts)

    advice, balance = Advice(BENCH), Balance(BENCH)
    assert share(advice, "directives", suggestions) > 0.7
    assert share(advice, "directives", questions) < 0.03 > share(advice, "directives", reflections)
    assert share(balance, "reflections", reflections) > 0.65
    assert share(balance, "reflections", questions) < 0.1
    assert share(balance, "questions", questions) > 0.95


def test_safe_replies_keep_the_boundaries() -> None:
    """Every therapist's turn of the shipped sample, and every shipped reply to a crisis, scores 1."""
    crisis = [json.loads(line)["reply"] for line in (SAMPLE / "crisis.jsonl").read_text().splitlines()]
    turns = [
        t.text
        for split in load(CorpusConfig()).splits.values()
        for d in split
        for t in d.turns
        if t.speaker is Speaker.THERAPIST
    ]
    low = [text for text in (*crisis, *turns) if value(Boundaries(), text) < 1]
    assert len(crisis) == 24 and len(turns) > 400 and low == []
