"""The crisis evaluation of several arms: conversations, answers, and what `crisis.json` and `crisis.parquet` hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.vera_mh import LICENCE, NOTICE, SOURCE
from eval.vera_mh.converse import Conversation, Replier, converse
from eval.vera_mh.hearing import Reply, hear
from eval.vera_mh.patient import TURNS
from eval.vera_mh.personas import Persona, Risk, load_personas
from eval.vera_mh.rubric import NO, YES, Rubric, Severity, load_rubric
from eval.vera_mh.rules import RULES
from eval.vera_mh.score import Answered, By, Judged, Rating, estimate, judge_all
from rewards.config import JudgeConfig
from rewards.preference_measures import Interval
from rewards.resources import Resources, resources
from rollout.types import Speaker

OVERALL = "all dimensions"
_WORST = 12
_SEVEREST_FIRST = [Risk.IMMINENT, Risk.HIGH, Risk.LOW, Risk.NONE]

SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("persona", pa.string()),
        ("risk", pa.string()),
        ("transcript", pa.string()),
        (
            "lines",
            pa.list_(
                pa.struct(
                    [
                        ("speaker", pa.string()),
                        ("text", pa.string()),
                        ("tier", pa.string()),
                        ("flags", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
        (
            "answers",
            pa.list_(
                pa.struct(
                    [
                        ("id", pa.string()),
                        ("answer", pa.string()),
                        ("by", pa.string()),
                        ("line", pa.int64()),
                        ("why", pa.string()),
                    ]
                )
            ),
        ),
        ("ratings", pa.list_(pa.struct([("dimension", pa.string()), ("rating", pa.string())]))),
    ],
    metadata={"notice": NOTICE, "licence": LICENCE},
)
"""`crisis.parquet`: a row per arm and persona. `tier` of a client's line is what the script says, of a reply's the gravest so
far; `answers` are the questions that the rubric asked, in order, `answer` "" where none came."""


def evaluate_crisis(
    repliers: Mapping[str, Replier],
    *,
    judge: JudgeConfig | None,
    personas: Sequence[Persona] | None = None,
    turns: int = TURNS,
    locale: str = "en-US",
    seed: int = 0,
    transcripts: Path | None = None,
) -> dict[str, Any]:
    """What `crisis.json` holds, JSON-ready; the conversations are written to `transcripts` as Parquet where it is given.

    Every arm talks with every persona for `turns` client turns; see `eval.vera_mh.patient`, `rules` and `score`. `value` of a
    dimension is in [0, 1], higher better, null where no conversation was rated; an item is a rubric question, `yes` of
    `asked` conversations being findings against the arm, `unanswered` those in which the question was due and had no answer
    (`by` is then who was to give it); `worst` names the line of the transcript, 0 for all of it. The seed is the bootstrap's.

    Raises ValueError for no arm, no persona, `turns` beyond the script, a locale without helplines, a judge without a
    model's name, and for a replier that breaks its contract. A judge that fails leaves questions unanswered, and raises nothing.
    """
    chosen = tuple(load_personas() if personas is None else personas)
    for what, given in (("repliers", repliers), ("personas", chosen)):
        if not given:
            raise ValueError(f"{what} must hold one at least, got none: name what is to be evaluated")
    if judge and judge.url and not judge.model:
        raise ValueError(f"judge.model must be named with judge.url, got '' for {judge.url}: name the endpoint's model")
    helplines = resources(locale)
    if not helplines.helplines:
        raise ValueError(f"locale must have helplines for the rubric to ask about, got {locale!r}: take en-US")
    talks = {arm: converse(arm, replier, chosen, turns=turns, locale=locale) for arm, replier in repliers.items()}
    return rate_crisis(talks, judge=judge, locale=locale, seed=seed, transcripts=transcripts)


def rate_crisis(
    talks: Mapping[str, Sequence[Conversation]],
    *,
    judge: JudgeConfig | None,
    locale: str = "en-US",
    seed: int = 0,
    transcripts: Path | None = None,
) -> dict[str, Any]:
    """`evaluate_crisis` of conversations that were held before, by arm."""
    helplines, rubric = resources(locale), load_rubric()
    conversations = [conversation for held in talks.values() for conversation in held]
    chosen = list(dict.fromkeys(conversation.persona for conversation in conversations))
    judged = judge_all(conversations, rubric, helplines, judge)
    if transcripts is not None:
        _write(transcripts, table(judged, helplines))
    rules_only = not (judge and judge.url)
    return {
        "arms": [
            _arm(arm, [j for j in judged if j.conversation.arm == arm], rubric, rules_only, seed) for arm in talks
        ],
        "personas": [
            {"name": p.name, "age": p.age, "risk": p.risk.value, "disclosure": p.openness.value} for p in chosen
        ],
        "source": f"{SOURCE}. {NOTICE}",
        "licence": LICENCE,
    }


def _arm(arm: str, judged: Sequence[Judged], rubric: Rubric, rules_only: bool, seed: int) -> dict[str, Any]:
    dimensions = [_dimension(name, [[j.ratings[name]] for j in judged], seed) for name in rubric.dimensions]
    dimensions.append(_dimension(OVERALL, [list(j.ratings.values()) for j in judged], seed))
    return {
        "arm": arm,
        "conversations": len(judged),
        "rules_only": rules_only,
        "dimensions": dimensions,
        "items": _items(judged, rubric),
        "worst": _worst(judged),
    }


def _dimension(name: str, ratings_of: Sequence[Sequence[Rating]], seed: int) -> dict[str, Any]:
    interval, rated = estimate(ratings_of, seed=seed)
    return {"name": name, **_finite(interval), "count": rated}


def _finite(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in vars(interval).items()}


def _items(judged: Sequence[Judged], rubric: Rubric) -> list[dict[str, Any]]:
    by_id: dict[str, list[Answered]] = {}
    for answered in (a for j in judged for a in j.answers):
        by_id.setdefault(answered.question.id, []).append(answered)
    items = []
    for id_, question in rubric.questions.items():
        if question.severity is None:  # what the user said
            continue
        answers = by_id.get(id_, [])
        given = [a.finding.answer for a in answers]
        items.append(
            {
                "id": id_,
                "question": question.text,
                "severity": question.severity.value,
                "yes": given.count(YES),
                "asked": given.count(YES) + given.count(NO),
                "unanswered": given.count(""),
                "by": _by(id_),
            }
        )
    return items


def _by(id_: str) -> str:
    return (By.RULES if id_ in RULES else By.JUDGE).value


def _worst(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Findings of severity Red: harm that was done before what was left out, the personas in most danger first."""
    found = [
        (a.finding.line in _replies(j.conversation), _SEVEREST_FIRST.index(j.conversation.persona.risk), j, a)
        for j in judged
        for a in j.answers
        if a.finding.answer == YES and a.question.severity is Severity.RED
    ]
    return [
        {"persona": j.conversation.persona.name, "line": a.finding.line, "why": f"{a.question.id}: {a.finding.why}"}
        for _, _, j, a in sorted(found, key=lambda row: (not row[0], row[1]))
    ][:_WORST]


def _replies(conversation: Conversation) -> set[int]:
    return {line for line, turn in enumerate(conversation.turns, 1) if turn.speaker is Speaker.THERAPIST}


def table(judged: Iterable[Judged], helplines: Resources) -> pa.Table:
    """The conversations and their answers; see `SCHEMA`."""
    return pa.Table.from_pylist([_row(one, helplines) for one in judged], schema=SCHEMA)


def _row(judged: Judged, helplines: Resources) -> dict[str, Any]:
    conversation = judged.conversation
    replies = {reply.line: reply for reply in hear(conversation, helplines).replies}
    return {
        "arm": conversation.arm,
        "persona": conversation.persona.name,
        "risk": conversation.persona.risk.value,
        "transcript": conversation.transcript,
        "lines": _lines(conversation, replies),
        "answers": [
            {
                "id": a.question.id,
                "answer": a.finding.answer,
                "by": a.by.value,
                "line": a.finding.line,
                "why": a.finding.why,
            }
            for a in judged.answers
        ],
        "ratings": [{"dimension": name, "rating": rating.value} for name, rating in judged.ratings.items()],
    }


def _lines(conversation: Conversation, replies: Mapping[int, Reply]) -> list[dict[str, Any]]:
    rows = []
    for line, turn in enumerate(conversation.turns, 1):
        of_client = turn.speaker is Speaker.CLIENT
        tier = turn.labels["tier"] if of_client else replies[line].tier.value
        flags = [] if of_client else sorted(replies[line].flags)
        rows.append({"speaker": turn.speaker.value, "text": turn.text, "tier": tier, "flags": flags})
    return rows


def _write(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(rows, partial)
    os.replace(partial, path)
