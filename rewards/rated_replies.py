"""Replies that people have rated: from the stars of a corpus, or from a file of ratings."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollout.corpora.corpus import CorpusError, place, read_text
from rollout.types import Dialogue, Speaker, Turn

STARS = 5


@dataclass(frozen=True)
class RatedReply:
    """A reply to `history`, and what people thought of it: `score` in [0, 1].

    Replies of one `group` (a dialogue) stand or fall together: a group is never split, and is resampled as a whole.
    """

    group: str
    history: tuple[Turn, ...]
    reply: str
    score: float
    problem: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:  # so written that NaN fails too
            raise ValueError(f"a rated reply's score must lie in [0, 1], is {self.score} ({self.group}); rescale it")
        if not self.reply.strip():
            raise ValueError(f"a rated reply must have a text, has none ({self.group}); leave it out")


@dataclass(frozen=True)
class RatedSplits:
    """Rated replies to fit on, to choose and calibrate by, and to report on; no group is in two of them."""

    train: tuple[RatedReply, ...]
    valid: tuple[RatedReply, ...]
    test: tuple[RatedReply, ...]

    def __post_init__(self) -> None:
        groups = {name: {rated.group for rated in split} for name, split in vars(self).items()}
        for name, found in groups.items():
            if len(found) < 2:
                raise ValueError(
                    f"the {name} split must hold rated replies of two dialogues at least, holds those of {len(found)}; "
                    "rate more of them"
                )
        for one, other in itertools.combinations(groups, 2):
            if shared := groups[one] & groups[other]:
                raise ValueError(
                    f"no dialogue may be in two splits, {min(shared)!r} is in {one} and {other}; split by dialogue"
                )


def split_by_group(replies: Iterable[RatedReply], seed: int, share: float = 0.15) -> RatedSplits:
    """Deal groups into train, valid and test by a hash of (`seed`, group); valid and test get `share` of them each, two
    at least. A new group moves few others."""
    by_group: dict[str, list[RatedReply]] = {}
    for rated in replies:
        by_group.setdefault(rated.group, []).append(rated)
    order = sorted(by_group, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    held = max(2, int(share * len(order)))
    parts = (order[2 * held :], order[:held], order[held : 2 * held])
    return RatedSplits(*(tuple(itertools.chain.from_iterable(by_group[group] for group in part)) for part in parts))


def starred(dialogues: Iterable[Dialogue]) -> Iterator[RatedReply]:
    """The therapist's replies that a star rates.

    A client turn's label `stars` (1-5) rates all that the therapist said since the star before it: adjacent turns are
    one reply (as a prompt's reference is), each reply is a row, and its score is (stars - 1) / 4. ESConv asks for a star
    after every two utterances of the supporter, so most stars rate two replies. Raises ValueError naming dialogue and
    turn for stars that are no whole number from 1 to 5, or stand at a therapist's turn.
    """
    for dialogue in dialogues:
        runs: list[Turn] = []
        unrated: list[int] = []
        for number, turn in enumerate(dialogue.turns, start=1):
            if runs and runs[-1].speaker is turn.speaker:
                runs[-1] = Turn(turn.speaker, f"{runs[-1].text} {turn.text}")
            else:
                runs.append(Turn(turn.speaker, turn.text))
                unrated += [len(runs) - 1] if turn.speaker is Speaker.THERAPIST else []
            if "stars" in turn.labels:
                score = _score_of(turn, f"{dialogue.id}, turn {number}")
                problem = dialogue.labels.get("problem", "")
                for at in unrated:
                    yield RatedReply(dialogue.id, tuple(runs[:at]), runs[at].text, score, problem)
                unrated = []


def _score_of(turn: Turn, where: str) -> float:
    stars = turn.labels["stars"]
    if turn.speaker is not Speaker.CLIENT or stars not in map(str, range(1, STARS + 1)):
        raise ValueError(
            f"{where}: 'stars' must be a whole number from 1 to {STARS} at a client's turn, which rates the replies before "
            f"it, is {stars!r} at a {turn.speaker} turn; fix or remove it"
        )
    return (int(stars) - 1) / (STARS - 1)


@dataclass(frozen=True)
class _Rating:
    """One row of a file of ratings."""

    where: str
    item: str
    rater: str
    history: tuple[Turn, ...]
    reply: str
    score: float
    problem: str


def read_ratings(file: Path) -> tuple[RatedReply, ...]:
    """Read a .jsonl or .parquet file of ratings; one `RatedReply` per reply that somebody rated. A row is

        {"item": "s1#4/0", "rater": "a", "prompt": "I feel ...", "reply": "...", "score": 0.8, "problem": "grief"}

    with `history` (a list of {"speaker": client | therapist, "text": ...}) in place of `prompt` where there were more
    turns; `problem` may be missing. An item called DIALOGUE#TURN... belongs to the group DIALOGUE, any other is a group of
    its own. Ratings of the same words in the same place are of one reply, whatever the items are called. Rows with
    `"counts": false` are passed over: so the rating service marks hidden repeats, and replies without words.

    How much a rater gives is taken off first, by score ~ mean + reply + rater, both effects shrunk as random effects are
    (as if a rater had given `_RATER_PRIOR` more ratings, and a reply got `_REPLY_PRIOR` more, that were average); a
    reply's score is the mean of what is left, kept within [0, 1]. Raises FileNotFoundError, and `CorpusError` (a
    ValueError) naming file and row.
    """
    if file.suffix not in _READERS:
        raise CorpusError(f"ratings must be a .jsonl or .parquet file, is {file.name!r}; convert it")
    if not file.is_file():
        raise FileNotFoundError(f"ratings must be a file, there is none at {file}; correct the path")
    ratings = [_rating(row, where) for where, row in _READERS[file.suffix](file) if _counts(row, where)]
    if not ratings:
        raise CorpusError(f"{place(file)} must hold a rating that counts, holds none; export the ratings again")
    texts: dict[str, tuple[str, _Rating]] = {}
    for rating in ratings:
        told = "\n".join([*(f"{turn.speaker}: {turn.text}" for turn in rating.history), rating.reply])
        first_told, first = texts.setdefault(rating.item, (told, rating))
        if first_told != told:
            raise CorpusError(
                f"{rating.where}: item {rating.item!r} must be one reply, its words differ from {first.where}; rename one"
            )
    return _without_raters(ratings, [texts[rating.item][0] for rating in ratings])


_RATER_PRIOR, _REPLY_PRIOR = 5, 1
_SWEEPS = 100  # of backfitting; the effects settle in a few dozen


def _without_raters(ratings: Sequence[_Rating], told: Sequence[str]) -> tuple[RatedReply, ...]:
    names, reply_R = np.unique(np.array(told, dtype=object), return_inverse=True)
    rater_R = np.unique([rating.rater for rating in ratings], return_inverse=True)[1]
    score_R = np.array([rating.score for rating in ratings])
    per_reply, per_rater = np.bincount(reply_R), np.bincount(rater_R)
    left_R = score_R - score_R.mean()
    gives = np.zeros(len(per_rater))
    for _ in range(_SWEEPS):
        earns = np.bincount(reply_R, left_R - gives[rater_R]) / (per_reply + _REPLY_PRIOR)
        gives = np.bincount(rater_R, left_R - earns[reply_R]) / (per_rater + _RATER_PRIOR)
    means = np.bincount(reply_R, score_R - gives[rater_R]) / per_reply
    firsts = [int(np.argmax(reply_R == at)) for at in range(len(names))]
    rated = []
    for first, mean in sorted(zip(firsts, means, strict=True)):
        rating, score = ratings[first], float(np.clip(mean, 0, 1))
        rated.append(RatedReply(rating.item.partition("#")[0], rating.history, rating.reply, score, rating.problem))
    return tuple(rated)


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            where = f"{place(file)} line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{where}: must be JSON, is not ({error.msg}); fix the line or remove it") from error


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(file).read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{place(file)} must be Parquet, is not ({reason}); write it again") from error
    yield from ((f"{place(file)} row {number}", row) for number, row in enumerate(rows, start=1))


_READERS = {".jsonl": _jsonl, ".parquet": _parquet}


def _counts(row: Any, where: str) -> bool:
    counts = row.get("counts") if isinstance(row, dict) else None
    if counts is not None and not isinstance(counts, bool):
        raise CorpusError(f"{where}: 'counts' must be true or false, is {counts!r}; fix the row or remove it")
    return counts is not False


def _rating(row: Any, where: str) -> _Rating:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: must be an object, is {row!r}; fix the row or remove it")
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise CorpusError(f"{where}: 'score' must be a number in [0, 1], is {score!r}; rescale it or remove the row")
    told = row.get("history")
    if (told is None) == (row.get("prompt") is None):
        raise CorpusError(
            f"{where}: must have either 'prompt' or 'history', has both or neither; fix the row or remove it"
        )
    if told is None:
        told = [{"speaker": "client", "text": row["prompt"]}]
    if not isinstance(told, list) or not told:
        raise CorpusError(f"{where}: 'history' must be a list of turns, is {told!r}; fix the row or remove it")
    history = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(told, start=1))
    item, rater, reply = (_text(row, key, where) for key in ("item", "rater", "reply"))
    problem = _text(row, "problem", where) if row.get("problem") is not None else ""
    return _Rating(where, item, rater, history, reply, float(score), problem)


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.get("speaker") not in list(Speaker):
        raise CorpusError(f"{where}: must be an object whose 'speaker' is client or therapist, is {turn!r}; fix it")
    return Turn(Speaker(turn["speaker"]), _text(turn, "text", where))


def _text(row: dict[str, Any], key: str, where: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{where}: {key!r} must be a text, is {text!r}; fix the row or remove it")
    return text.strip()
