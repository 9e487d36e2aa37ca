"""Pair constructions, against ones written down here from the published rows."""

from __future__ import annotations

import csv
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.config import CorpusConfig, PairsName
from rollout.corpora import SAMPLE, load
from rollout.pairs import make_pairs
from rollout.types import Dialogue, Speaker, Turn

REAL = Path(__file__).parents[2] / "shared" / "data" / "hope"
NAMES: list[PairsName] = ["turns", "v1_pairs", "v1_dialogue", "v2_cumulative", "next_utterance"]

Row = tuple[str, str]  # who ("P" or "T"), what
Pair = tuple[str, str]  # asked, answered


@pytest.fixture(
    scope="module",
    params=[
        SAMPLE / "hope",
        pytest.param(REAL, marks=pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/hope")),
    ],
    ids=["sample", "real sessions"],
)
def sessions(request: pytest.FixtureRequest) -> list[tuple[Dialogue, list[Row]]]:
    """Each session as the loader gives it, and its rows as the file has them."""
    folder: Path = request.param
    corpus = load(CorpusConfig(format="hope", path=str(folder)))
    read = []
    for dialogue in (*corpus.train, *corpus.valid, *corpus.test):
        with (folder / f"{dialogue.id.rpartition('/')[2]}.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = [{key.lower(): cell.strip() for key, cell in row.items()} for row in csv.DictReader(file)]
        read.append((dialogue, [(row["type"], row["utterance"]) for row in rows if row["type"] != "Type"]))
    assert len(read) >= 8
    return read


def v1_pairs(rows: list[Row]) -> list[Pair]:
    """Each run of P with the run of T right after it."""
    runs = [(who, " ".join(text for _, text in held)) for who, held in groupby(rows, key=lambda row: row[0])]
    return [(a[1], b[1]) for a, b in pairwise(runs) if a[0] == "P"]


def v1_dialogue(rows: list[Row]) -> list[Pair]:
    """All of P with all of T, where T answers at all."""
    if "PT" not in "".join(who for who, _ in rows):
        return []
    return [(everything(rows, "P"), everything(rows, "T"))]


def v2_cumulative(rows: list[Row]) -> list[Pair]:
    """Wherever a run of T that answers ends: all of P with all of T up to there."""
    who = "".join(who for who, _ in rows) + "."
    ends = [k + 1 for k in range(len(rows)) if who[k] == "T" != who[k + 1] and "P" in who[:k]]
    return [(everything(rows[:end], "P"), everything(rows[:end], "T")) for end in ends]


def next_utterance(rows: list[Row]) -> list[Pair]:
    """Utterance k with utterance k + 1."""
    return [(rows[k][1], rows[k + 1][1]) for k in range(len(rows) - 1)]


def everything(rows: list[Row], speaker: str) -> str:
    return " ".join(text for who, text in rows if who == speaker)


ORACLES = {
    "v1_pairs": v1_pairs,
    "v1_dialogue": v1_dialogue,
    "v2_cumulative": v2_cumulative,
    "next_utterance": next_utterance,
}


def texts(pairs: list[Dialogue]) -> list[Pair]:
    """Question and answer of each pair, checked to be just these two turns."""
    for pair in pairs:
        assert [turn.speaker for turn in pair.turns] == [Speaker.CLIENT, Speaker.THERAPIST]
    return [(pair.turns[0].text, pair.turns[1].text) for pair in pairs]


@pytest.mark.parametrize("how", sorted(ORACLES))
def test_pairs_are_those_of_the_published_rows(how: PairsName, sessions: list[tuple[Dialogue, list[Row]]]) -> None:
    """Each session gives the pairs that its rows say, in order, whichever sessions stand beside it."""
    expected = [(dialogue.id, ORACLES[how](rows)) for dialogue, rows in sessions]
    pairs = make_pairs([dialogue for dialogue, _ in sessions], how)
    assert texts(pairs) == [pair for _, held in expected for pair in held]
    assert [pair.id for pair in pairs] == [f"{name}#{k}" for name, held in expected for k in range(len(held))]
    assert len(pairs) >= len(sessions)


@given(who=st.text("PT", min_size=1, max_size=9))
def test_pairs_of_every_order_of_speakers(who: str) -> None:
    """Whoever opens, closes or speaks twice: a reply that answers nobody opens no pair, and no other is left out."""
    rows = [(speaker, f"{speaker}{k}") for k, speaker in enumerate(who)]
    turns = tuple(Turn(Speaker.CLIENT if speaker == "P" else Speaker.THERAPIST, text) for speaker, text in rows)
    for how, oracle in ORACLES.items():
        assert texts(make_pairs([Dialogue("d", turns)], how)) == oracle(rows)  # type: ignore[arg-type]


def test_turns_are_the_dialogue_itself(sessions: list[tuple[Dialogue, list[Row]]]) -> None:
    """Ids, turns and labels are those of the session."""
    dialogues = [dialogue for dialogue, _ in sessions]
    assert make_pairs(dialogues, "turns") == dialogues


def test_the_next_utterance_is_shifted_by_one(sessions: list[tuple[Dialogue, list[Row]]]) -> None:
    """Within a session every answer is the next pair's question, whoever spoke; the last answer is the last utterance."""
    for dialogue, rows in sessions:
        pairs = texts(make_pairs([dialogue], "next_utterance"))
        assert [answered for _, answered in pairs[:-1]] == [asked for asked, _ in pairs[1:]]
        assert (len(pairs), pairs[0][0], pairs[-1][1]) == (len(rows) - 1, rows[0][1], rows[-1][1])


@pytest.mark.parametrize("how", NAMES)
def test_no_pair_crosses_sessions(how: PairsName) -> None:
    """Where one session ends with the client and the next begins with the therapist, nothing is made of the two."""
    asked, answered = Turn(Speaker.CLIENT, "first"), Turn(Speaker.THERAPIST, "second")
    split = [Dialogue("a", (asked,)), Dialogue("b", (answered,))]
    assert len(make_pairs([Dialogue("ab", (asked, answered))], how)) == 1
    assert make_pairs(split, how) == (split if how == "turns" else [])


def test_labels_go_with_their_utterance() -> None:
    """A pair's question and answer have the labels of the turns they are made of, and the session's emotion and labels.

    Of several turns in one the last label counts.
    """
    speakers = [Speaker.CLIENT, Speaker.CLIENT, Speaker.THERAPIST, Speaker.CLIENT, Speaker.THERAPIST]
    turns = tuple(Turn(speaker, f"t{k}", {"dialogue_act": f"A{k}"}) for k, speaker in enumerate(speakers))
    dialogue = Dialogue("d", turns, {"emotion": "sadness", "problem": "job"})
    acts = {
        "v1_pairs": [("A1", "A2"), ("A3", "A4")],
        "v1_dialogue": [("A3", "A4")],
        "v2_cumulative": [("A1", "A2"), ("A3", "A4")],
        "next_utterance": [("A0", "A1"), ("A1", "A2"), ("A2", "A3"), ("A3", "A4")],
    }
    for how, expected in acts.items():
        pairs = make_pairs([dialogue], how)  # type: ignore[arg-type]
        assert [tuple(turn.labels["dialogue_act"] for turn in pair.turns) for pair in pairs] == expected
        assert all(turn.labels["emotion"] == "sadness" for pair in pairs for turn in pair.turns)
        assert all(pair.labels == dialogue.labels for pair in pairs)
