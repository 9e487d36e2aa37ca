"""Nobody earns more by gaming a term than by answering well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rewards.config import RewardsConfig
from rewards.mixture import Mixture
from rewards.panel import TERMS, Measurement, Panel
from tests.reward_cases import CASES, PROBES
from tests.reward_replies import ELSEWHERE, reply

READS_A_LABEL = {"emotion_label"}  # what the policy wrote before its reply; the text does not matter
OFFLINE = sorted(TERMS.keys() - ELSEWHERE - READS_A_LABEL)


def weighing(weights: Mapping[str, float]) -> RewardsConfig:
    """A reward of the terms in `weights`."""
    sections: dict[str, Any] = {
        name: replace(section, weight=weights.get(name, 0.0)) for name, section in RewardsConfig().terms.items()
    }
    return RewardsConfig(**sections)


CONTEXT_AND_EMOTION = {
    "similarity": 1.0, "rouge": 0.5, "emotion": 0.5, "relevance": 0.5, "specificity": 0.5,
    "boundaries": 0.25, "balance": 0.5, "advice": 0.25, "length": 0.5, "repetition": 0.5, "template": 0.25,
}  # fmt: skip
NO_REFERENCE = {
    "relevance": 1.0, "specificity": 1.0, "emotion": 1.0, "boundaries": 0.5, "balance": 1.0, "advice": 0.5,
    "length": 0.5, "repetition": 0.5, "template": 0.5,
}  # fmt: skip
MIXTURES = {
    "defaults": RewardsConfig(),
    "context and emotion": weighing(CONTEXT_AND_EMOTION),
    "no reference": weighing(NO_REFERENCE),
    "every term": weighing(dict.fromkeys(OFFLINE, 1.0)),
}

ECHOES = {"echo", "echo turned round", "shuffled echo", "echo of the history"}
LISTS = {"words of feeling", "framed feelings", "question words", "volley of questions", "helpline words"}
STOCK = {"repeated template", "stock reply"}
FOREIGN = {"reference of another", "good reply to another"}
TWICE = {"good reply five times"}

# What each term withstands alone, on every case that it applies to. No term pays for nothing. Where a probe is missing:
# likeness to a reference is paid to who repeats the client, since the reference takes up the same matter; overlap with it
# is small and decided by function words, so that any fluent reply may win; the emotion lexicon reads what is said, not who
# said it first; and rules on wording cannot know whom a reply answers.
WITHSTANDS = {
    "similarity": LISTS | STOCK | FOREIGN | {"list of advice", "injection"},
    "bertscore": LISTS | STOCK | FOREIGN | {"list of advice", "injection"},
    "rouge": LISTS | TWICE | {"repeated template", "list of advice", "injection"},
    "bleu": LISTS | TWICE | {"injection"},
    "meteor_nosyn": LISTS | TWICE | {"repeated template", "injection"},
    "relevance": ECHOES | LISTS | FOREIGN | {"repeated template", "list of advice", "injection"},
    "specificity": ECHOES | LISTS | FOREIGN | {"repeated template", "list of advice"},
    "emotion": LISTS | {"list of advice", "injection"},
    "balance": ECHOES | LISTS | STOCK | {"list of advice", "injection"},
    "advice": {"list of advice"},
    "inquiry": ECHOES
    | TWICE
    | {"words of feeling", "volley of questions", "helpline words", "repeated template", "injection"},
    "length": TWICE,  # many words cost, a wrong word does not
    "repetition": TWICE | {"repeated template", "question words"},
    "template": STOCK,
    "crisis_reply": set(PROBES),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[Measurement]]:
    """Per case: the measurements, by every term that needs no file, of the good reply and of each probe in order."""
    panel = Panel(weighing(dict.fromkeys(OFFLINE, 1.0)))
    return {
        name: panel.measure([
            reply(text, case.prompt, k) for k, text in enumerate([case.good, *(probe(name) for probe in PROBES.values())])
        ])
        for name, case in CASES.items()
    }  # fmt: skip


def paid(config: RewardsConfig, measurements: Sequence[Measurement]) -> list[float]:
    """What `config` pays for replies that were measured by more terms than it has."""
    seen = [replace(m, parts={n: m.parts[n] for n in config.measured if n in m.parts}) for m in measurements]
    return [score.value for score in Mixture(config).combine(seen)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("config", MIXTURES.values(), ids=MIXTURES.keys())
def test_no_probe_earns_as_much_as_a_plain_good_reply(
    measured: dict[str, list[Measurement]], config: RewardsConfig, case: str
) -> None:
    """Under each mixture every probe earns less than the plain good reply to the same prompt."""
    good, *probes = paid(config, measured[case])
    assert [(name, value) for name, value in zip(PROBES, probes, strict=True) if value >= good] == []


@pytest.mark.parametrize("case", CASES)
def test_a_good_reply_earns_more_than_half_and_raises_no_flag(
    measured: dict[str, list[Measurement]], case: str
) -> None:
    """The good replies are good by the reward's own lights, so that to score below them is not to score low."""
    assert measured[case][0].flags == ()
    assert min(paid(config, measured[case])[0] for config in MIXTURES.values()) > 0.5


@pytest.mark.parametrize("term", OFFLINE)
def test_each_term_withstands_its_probes_alone(measured: dict[str, list[Measurement]], term: str) -> None:
    """On every case that it applies to, a term gives each probe that it is said to withstand less than the good reply."""
    told = {"nothing", *WITHSTANDS.get(term, set())}
    judged = [case for case, (good, *_) in measured.items() if term in good.parts]
    assert judged and told <= PROBES.keys()
    won = [
        (case, name)
        for case in judged
        for name, probe in zip(PROBES, measured[case][1:], strict=True)
        if name in told and probe.parts[term] >= measured[case][0].parts[term]
    ]
    assert won == []
