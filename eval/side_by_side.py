"""Blinded side-by-side of two arms of an evaluated suite: which replies raters are asked about, and what their answers say.

    pairs = paired(directory, "ppo", "sft")        # replies.parquet: every prompt that both arms answered
    pairs.chosen(60, wanted=2, seed=0)             # what is put to raters (`rewards.experts.comparison`)
    results(directory, "ppo", "sft")               # directory/human/ratings.sqlite -> what goes into human.json

The arms stand in the database in the order of their names, so that asking for them the other way round asks nothing new.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eval import preferences
from eval.judge_agreement import judge_agreement
from eval.preferences import Vote, described
from rewards.experts import ledger
from rewards.experts.comparison import Comparison, Judgement, comparison_of, judgements
from rewards.experts.store import DATABASE
from rollout.types import Speaker, Turn

REPLIES, FOLDER, RESULTS = "replies.parquet", "human", "human.json"
_COLUMNS = ("corpus", "arm", "prompt_id", "sample", "history", "reply", "tier", "finish", "error")
_NO_REPLY = ("failed", "aborted")
_LINE = re.compile(rf"({'|'.join(speaker.value.capitalize() for speaker in Speaker)}): ?")
_SURE = 0.05


class NobodyJudged(ValueError):
    """There is no judgement to count."""


@dataclass(frozen=True)
class Pairs:
    """Two arms of one corpus: `comparisons` has one for each prompt that both answered, by `key`; `silent`, by arm, how many
    prompts only the other one answered."""

    corpus: str
    comparisons: Mapping[str, Comparison]
    silent: Mapping[str, int]

    def chosen(self, items: int, *, wanted: int, seed: int) -> list[Comparison]:
        """At most `items` of them, drawn by `seed`: of a larger number the first are the same."""

        def drawn(key: str) -> str:
            return hashlib.sha256(f"{seed}\n{key}".encode()).hexdigest()

        keys = sorted(self.comparisons, key=drawn)[:items]
        return [replace(self.comparisons[key], wanted=wanted, seed=seed) for key in keys]


def paired(directory: Path, first: str, second: str, corpus: str = "") -> Pairs:
    """The replies of two arms, prompt by prompt: of several samples the first that both have.

    A reply that failed, was aborted or is empty is none. Raises ValueError that names the folder, column, corpus or arm
    that is wrong, and where no prompt has replies of both.
    """
    if first == second:
        raise ValueError(f"a side-by-side needs two arms, got {first!r} twice: name another one")
    rows = _rows(directory)
    arms = sorted({row["arm"] for row in rows})
    for arm in (first, second):
        if arm not in arms:
            close = get_close_matches(arm, arms, 1)
            hint = f"did you mean {close[0]!r}?" if close else "name one of these"
            raise ValueError(f"arms of {directory / REPLIES} are {', '.join(arms) or 'none'}; got {arm!r}: {hint}")
    corpus = _corpus(directory, rows, (first, second), corpus)
    said: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {first: {}, second: {}}
    for row in rows:
        if row["corpus"] == corpus and row["arm"] in said and _is_reply(row):
            said[row["arm"]][row["prompt_id"], row["sample"]] = row
    both = dict(
        sorted(said[first].keys() & said[second].keys(), reverse=True)
    )  # the lowest sample comes last, and stays
    if not both:
        told = ", ".join(f"{arm} has {len(said[arm])} replies" for arm in (first, second))
        raise ValueError(
            f"{first} and {second} must have replied to a prompt of {corpus} both, there is none ({told}): evaluate them on "
            "the same prompts"
        )
    ordered = (min(first, second), max(first, second))
    found = {}
    for prompt, sample in sorted(both.items()):
        shown = said[first][prompt, sample]
        key = f"{corpus}/{prompt}/{sample}"
        texts = (said[ordered[0]][prompt, sample]["reply"], said[ordered[1]][prompt, sample]["reply"])
        found[key] = Comparison(key, tuple(turns(shown["history"])), ordered, texts, shown["tier"] or "none")
    answered = {arm: {prompt for prompt, _ in said[arm]} for arm in said}
    silent = {first: len(answered[second] - answered[first]), second: len(answered[first] - answered[second])}
    return Pairs(corpus, found, silent)


def turns(transcript: str) -> Iterator[Turn]:
    """The turns of a transcript of "Client: ..." and "Therapist: ..." lines; a line of neither goes on with the turn before.
    What comes before the first is the client's."""
    speaker, text = Speaker.CLIENT, ""
    for line in transcript.split("\n"):
        begun = _LINE.match(line)
        if begun is None:
            text += f"\n{line}"
            continue
        if text.strip():
            yield Turn(speaker, text.strip("\n"))
        speaker, text = Speaker(begun[1].lower()), line[begun.end() :]
    if text.strip():
        yield Turn(speaker, text.strip("\n"))


def results(
    directory: Path, first: str, second: str, *, corpus: str = "", draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """What raters said of `first` against `second`: this pair's part of human.json.

    Only judgements of replies that the suite still has count. The audit chain is checked first. Raises ValueError where it
    is broken, as `paired` does, and `NobodyJudged`.
    """
    pairs = paired(directory, first, second, corpus)
    path = directory / FOLDER / DATABASE
    if not path.exists():
        raise _nobody(directory, first, second)
    with ledger.opened(path) as db:
        head = ledger.check(db)
        asked = [row for row in _asked(db) if {row["first_arm"], row["second_arm"]} == {first, second}]
        asked = [row for row in asked if row["key"].startswith(f"{pairs.corpus}/")]
        current = {row["id"]: row for row in asked if _is_current(row, pairs)}
        given = [one for one in judgements(db) if one.comparison in {row["id"] for row in asked}]
        names = [row["name"] for row in db.execute("SELECT name FROM raters ORDER BY at, rowid")]
        skips = _skips(db, set(current))
    counted = [one for one in given if one.comparison in current]
    if not counted:
        raise _nobody(directory, first, second)
    votes = [_vote(one, flipped=current[one.comparison]["first_arm"] != first) for one in counted]
    preference = preferences.preferences(votes)
    same = [one for one, row in current.items() if row["same"]]
    waiting = [one for one, row in current.items() if not row["same"] and one not in preference]
    everything = {**preference, **dict.fromkeys(same, 0.0)}
    rate, p = preferences.win_rate(everything, draws=draws, seed=seed)
    where = preferences.position(votes)
    known_as = {name: f"rater {at}" for at, name in enumerate(names, 1)}
    told = {
        "first": first, "second": second, "corpus": pairs.corpus,
        "items": len(everything), "asked": len(preference), "same_text": len(same), "waiting": len(waiting),
        "judgements": sum(not vote.repeat for vote in votes), "repeats": sum(vote.repeat for vote in votes),
        "raters": len({vote.rater for vote in votes}), "skips": skips,
        "first_wins": sum(value > 0 for value in preference.values()),
        "second_wins": sum(value < 0 for value in preference.values()),
        "ties": sum(value == 0 for value in everything.values()),
        "win_rate": described(rate), "p": p, "test": "exact sign test over items",
        "win_rate_asked": described(preferences.win_rate(preference, draws=draws, seed=seed)[0]),
        "preference": preferences.strength(everything, draws=draws, seed=seed),
        "position": where, "consistency": preferences.consistency(votes), "agreement": preferences.agreement(votes),
        "by_rater": preferences.by_rater(votes, known_as.__getitem__), "flags": preferences.flags(votes),
        "reasons": [
            {"item": current[vote.item]["key"], "rater": known_as[vote.rater], "preference": vote.preference, "text": vote.reason}
            for vote in votes
            if vote.reason.strip()
        ],
        "judges": judge_agreement(
            directory / REPLIES, first, second, {current[item]["key"]: value for item, value in preference.items()},
            draws=draws, seed=seed,
        ),
        "silent": dict(pairs.silent), "draws": draws, "seed": seed, "chain": {"rows": head.seq, "hash": head.hash},
    }  # fmt: skip
    return {**told, "notes": list(_notes(told, len(given) - len(counted)))}


def _notes(told: Mapping[str, Any], outdated: int) -> Iterator[str]:
    """What a reader of the numbers should know, a sentence each."""
    first, second = told["first"], told["second"]
    if told["waiting"]:
        yield (
            f"{told['waiting']} of {told['waiting'] + told['asked']} items are not judged yet; until they are, items of one "
            "text weigh more in win_rate than they will (win_rate_asked is without them)."
        )
    if told["same_text"]:
        yield f"On {told['same_text']} items both replies read the same: nobody was asked, and they are counted as ties."
    if told["raters"] == 1:
        yield "There is one rater: what is one person's taste cannot be told from what is better."
    where = told["position"]
    if where is not None and where["p"] <= _SURE:
        side = "left" if where["value"] > 0.5 else "right"
        yield (
            f"Raters chose the {side} more often than chance would ({max(where['value'], 1 - where['value']):.0%}); sides were "
            "drawn at random, so this blurs the win rate and favours neither arm."
        )
    for arm, count in told["silent"].items():
        if count:
            yield f"{arm} has no reply to {count} prompts that {second if arm == first else first} answered: they are left out."
    if outdated:
        yield f"{outdated} judgements are of replies that the suite does not have any more: they are left out."


def _vote(one: Judgement, *, flipped: bool) -> Vote:
    ours, theirs = ("second", "first") if flipped else ("first", "second")
    towards = (0.0 - one.preference) if flipped else one.preference
    return Vote(
        one.comparison, one.rater, towards, one.left == ours, one.repeat, tuple(one.flags[ours]), tuple(one.flags[theirs]),
        one.reason, one.seconds,
    )  # fmt: skip


def _is_current(row: sqlite3.Row, pairs: Pairs) -> bool:
    """Whether the suite's replies are those that were shown."""
    now = pairs.comparisons.get(row["key"])
    return now is not None and now.scrubbed().id == comparison_of(row).id


def _asked(db: sqlite3.Connection) -> list[sqlite3.Row]:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'comparisons'").fetchone() is None:
        return []  # a folder of ratings, of before there were comparisons
    return db.execute("SELECT * FROM comparisons ORDER BY seq").fetchall()


def _skips(db: sqlite3.Connection, ids: set[str]) -> int:
    skipped = Counter(row[0] for row in db.execute("SELECT comparison FROM comparison_leases WHERE state = 'skipped'"))
    return sum(count for one, count in skipped.items() if one in ids)


def _nobody(directory: Path, first: str, second: str) -> NobodyJudged:
    return NobodyJudged(
        f"human results need a judgement of {first} against {second}, {directory / FOLDER} has none: start attune compare, "
        "invite raters at the admin's link, and let them answer"
    )


def _is_reply(row: Mapping[str, Any]) -> bool:
    return not row["error"] and row["finish"] not in _NO_REPLY and bool((row["reply"] or "").strip())


def _corpus(directory: Path, rows: Sequence[Mapping[str, Any]], arms: tuple[str, str], corpus: str) -> str:
    known = sorted({row["corpus"] for row in rows if row["arm"] in arms})
    if corpus and corpus not in known:
        raise ValueError(f"corpora of {directory / REPLIES} are {', '.join(known)}; got {corpus!r}: name one of these")
    if not corpus and len(known) > 1:
        raise ValueError(
            f"{directory / REPLIES} has replies to {len(known)} corpora, {', '.join(known)}: name one with --corpus"
        )
    return corpus or known[0]


def _rows(directory: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / REPLIES
    if not path.is_file():
        raise ValueError(
            f"{directory} must be the directory of an evaluated suite, has no {REPLIES}: run attune evaluate"
        )
    try:
        lacking = [name for name in _COLUMNS if name not in pq.read_schema(path).names]
        if lacking:
            raise ValueError(f"{path} must have the column {lacking[0]!r}, has it not: evaluate the suite again")
        rows: list[dict[str, Any]] = pq.read_table(path, columns=list(_COLUMNS)).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a Parquet file, is none ({error}): evaluate the suite again") from error
    return rows
