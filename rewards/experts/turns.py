"""Raters taking turns at one kind of thing, replies or comparisons: who may be given which, and what becomes of an answer.

answers wanted  >=  answers that stand  +  live leases
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.danger import IN_DANGER
from rewards.experts import audit
from rewards.experts.config import ServiceConfig
from rewards.experts.refusal import Refused
from rewards.experts.types import Kind

SENSITIVE = tuple(sorted(tier.value for tier in IN_DANGER))
HARD = ", ".join(f"'{tier}'" for tier in SENSITIVE)
_LEFT_AT_MOST = 1000  # what `left` counts up to: nobody plans a sitting beyond it


class Sent(Protocol):
    """What a page sends, under an id of its making that makes sending it twice harmless."""

    @property
    def lease(self) -> str: ...
    @property
    def submission(self) -> str: ...
    @property
    def content(self) -> str:
        """Hash of all of it."""
        ...


@dataclass(frozen=True)
class Turns:
    """One kind of thing: where the schema keeps it, and how it is spoken of.

    `thing` names a row of the table `things` in the tables `leases` and `answers`. `done` is the column that counts a
    thing's answers, and the state of a lease that ended in one. `waits` is the condition of the index by which what waits is
    found, word by word; `order` is the order of that index.
    """

    things: str
    thing: str
    leases: str
    answers: str
    answer: Kind
    done: str
    waits: str  # of a thing t
    order: str
    called: str  # by raters
    asked_at: str
    salt: str = ""  # so that draws for one kind say nothing of those for another

    # What comes next

    def left(self, db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> int:
        """Things that this rater could be given now, up to 1,000."""
        asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now, "most": _LEFT_AT_MOST}
        return int(db.execute(f"SELECT count(*) FROM (SELECT 1 {self._waiting} LIMIT :most)", asked).fetchone()[0])

    def first(self, db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> str | None:
        """The thing whose turn it is for this rater."""
        asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now}
        found = row(db, f"SELECT t.id {self._waiting} ORDER BY {self.order} LIMIT 1", asked)
        return None if found is None else str(found["id"])

    def again(self, db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row) -> sqlite3.Row | None:
        """What this rater is given again now, if it is time for that: its id, and the lease under which it was answered.

        With probability `repeats`, drawn from the rater's name and how much he or she has done, something answered at least
        `repeat_gap` answers ago.
        """
        finished = f"SELECT count(*) FROM {self.leases} WHERE rater = ? AND state IN ('{self.done}', 'skipped')"
        count = db.execute(finished, (rater["name"],)).fetchone()[0]
        drawn = f"{rater['name']}\n{self.salt}{count}"
        if share(hashlib.sha256(drawn.encode()).hexdigest()) >= config.repeats:
            return None
        ago = f"SELECT seq FROM {self.answers} WHERE rater = ? AND undone = 0 ORDER BY seq DESC LIMIT 1 OFFSET ?"
        latest = row(db, ago, (rater["name"], config.repeat_gap - 1))
        if latest is None:
            return None
        asked = {"rater": rater["name"], "crisis": rater["crisis"], "latest": latest["seq"]}
        candidates = db.execute(f"SELECT count(*) {self._repeatable}", asked).fetchone()[0]
        if not candidates:
            return None
        place = int(share(hashlib.sha256(f"{drawn}\nwhich".encode()).hexdigest()) * candidates)
        return row(db, f"SELECT t.id, a.lease {self._repeatable} ORDER BY a.seq LIMIT 1 OFFSET {place}", asked)

    @property
    def _waiting(self) -> str:
        """It waits, is not too hard to bear, was not answered or refused by this rater, and answers and other raters' live
        leases leave room."""
        return f"""
            FROM {self.things} t WHERE {self.waits}
            AND (:crisis OR t.tier NOT IN ({HARD}))
            AND NOT EXISTS (SELECT 1 FROM {self.leases} mine WHERE mine.{self.thing} = t.id AND mine.rater = :rater
                AND mine.state IN ('{self.done}', 'skipped'))
            AND t.{self.done} + (SELECT count(*) FROM {self.leases} l WHERE l.{self.thing} = t.id AND l.state = 'held'
                AND l.repeat = 0 AND l.expires > :now AND l.rater <> :rater) < t.raters
        """

    @property
    def _repeatable(self) -> str:
        return f"""
            FROM {self.answers} a JOIN {self.things} t ON t.id = a.{self.thing}
            WHERE a.rater = :rater AND a.repeat = 0 AND a.undone = 0 AND a.seq <= :latest
            AND (:crisis OR t.tier NOT IN ({HARD}))
            AND NOT EXISTS (SELECT 1 FROM {self.leases} mine WHERE mine.{self.thing} = t.id AND mine.rater = :rater
                AND mine.repeat = 1 AND mine.state IN ('{self.done}', 'skipped'))
        """

    # Leases

    def usable(self, db: sqlite3.Connection, rater: str, lease: str, now: float) -> sqlite3.Row:
        """The lease, if this rater may still work under it: it is live, or it ran out and its place was not taken.

        Raises `Refused`: 404 for a handle that was never given, 409 for another's, a finished or a lost one.
        """
        one, given = self.called, row(db, f"SELECT * FROM {self.leases} WHERE lease = ?", (lease,))
        if given is None:
            raise Refused(
                404, f"lease must be one that was given by {self.asked_at}, is not known: ask for the next {one}"
            )
        if given["rater"] != rater:
            raise Refused(409, f"lease must be your own, belongs to another rater: ask for the next {one}")
        if given["state"] == self.done:
            raise Refused(409, f"this {one} is already {self.done}: ask for the next one, or undo")
        if given["state"] != "held":
            raise Refused(409, f"this {one} was given back: ask for the next one")
        if given["expires"] <= now and not given["repeat"] and not self._has_room(db, given, now):
            raise Refused(409, f"the time for this {one} is over and another rater has it now: ask for the next one")
        return given

    def renew(self, db: sqlite3.Connection, config: ServiceConfig, lease: str, now: float) -> float:
        """The rater is at work: the time starts anew; seconds until the lease runs out."""
        db.execute(f"UPDATE {self.leases} SET expires = ? WHERE lease = ?", (now + config.lease_s, lease))
        return config.lease_s

    def skip(self, db: sqlite3.Connection, name: str, lease: str, reason: str, now: float) -> None:
        """Give the thing to others; this rater will not see it again. Raises `Refused` as `usable` does."""
        given = self.usable(db, name, lease, now)
        db.execute(f"UPDATE {self.leases} SET state = 'skipped' WHERE lease = ?", (lease,))
        told = {self.thing: given[self.thing], "rater": name, "reason": reason, "repeat": bool(given["repeat"])}
        audit.append(db, now, Kind.SKIP, told)

    def _has_room(self, db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> bool:
        wanted = f"SELECT raters - {self.done} FROM {self.things} WHERE id = ?"
        others = (
            f"SELECT count(*) FROM {self.leases} WHERE {self.thing} = ? AND state = 'held' AND repeat = 0 AND expires > ? "
            "AND rater <> ?"
        )
        asked = (lease[self.thing], now, lease["rater"])
        return bool(db.execute(others, asked).fetchone()[0] < db.execute(wanted, asked[:1]).fetchone()[0])

    # Answers

    def sitting(self, db: sqlite3.Connection, config: ServiceConfig, name: str) -> dict[str, int]:
        """How far the sitting is."""
        done = f"SELECT count(*) FROM {self.answers} WHERE rater = ? AND sitting = ? AND undone = 0"
        return {"done": db.execute(done, (name, rater(db, name)["sitting"])).fetchone()[0], "limit": config.sitting}

    def known(self, db: sqlite3.Connection, name: str, told: Sent) -> str | None:
        """The id of an answer that was sent before. Raises `Refused` (409) where its content was another."""
        ask = f"SELECT id, rater, content FROM {self.answers} WHERE submission = ?"
        if (found := row(db, ask, (told.submission,))) is None:
            return None
        if (found["rater"], found["content"]) != (name, told.content):
            raise Refused(
                409, f"submission must be new for each {self.answer}, is known with another content: send a new id"
            )
        return str(found["id"])

    def keep(self, db: sqlite3.Connection, told: Sent, lease: sqlite3.Row, body: Mapping[str, Any], now: float) -> None:
        """Write the answer `body` to what was shown under `lease` down: the lease ends with it."""
        seq = audit.append(db, now, self.answer, body)
        name, thing, repeat = lease["rater"], lease[self.thing], lease["repeat"]
        db.execute(
            f"INSERT INTO {self.answers} (seq, id, {self.thing}, rater, lease, submission, content, body, repeat, sitting, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(seq, body["id"], thing, name, told.lease, told.submission, told.content, audit.canonical(body)),
                *(repeat, rater(db, name)["sitting"], now),
            ),
        )
        db.execute(f"UPDATE {self.leases} SET state = '{self.done}' WHERE lease = ?", (told.lease,))
        if not repeat:
            db.execute(f"UPDATE {self.things} SET {self.done} = {self.done} + 1 WHERE id = ?", (thing,))

    def last(self, db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
        """The last answer of the rater's sitting, if it was not taken back."""
        of_sitting = f"SELECT * FROM {self.answers} WHERE rater = ? AND sitting = ? ORDER BY seq DESC LIMIT 1"
        found = row(db, of_sitting, (name, rater(db, name)["sitting"]))
        return None if found is None or found["undone"] else found

    def to_undo(self, db: sqlite3.Connection, name: str) -> sqlite3.Row:
        """`last`. Raises `Refused` (409) where there is none."""
        if (last := self.last(db, name)) is None:
            raise Refused(
                409, f"undo takes back the last {self.answer} of this sitting, once: there is none to take back"
            )
        return last

    def take_back(self, db: sqlite3.Connection, last: sqlite3.Row, now: float) -> None:
        """The answer counts no more; its lease goes back."""
        db.execute(f"UPDATE {self.answers} SET undone = 1 WHERE seq = ?", (last["seq"],))
        db.execute(f"UPDATE {self.leases} SET state = 'returned' WHERE lease = ?", (last["lease"],))
        if not last["repeat"]:
            db.execute(f"UPDATE {self.things} SET {self.done} = {self.done} - 1 WHERE id = ?", (last[self.thing],))
        told = {self.answer.value: last["id"], self.thing: last[self.thing], "rater": last["rater"]}
        audit.append(db, now, Kind.UNDO, told)


def rater(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The rater's row."""
    found: sqlite3.Row = db.execute("SELECT * FROM raters WHERE name = ?", (name,)).fetchone()
    return found


def share(digest: str) -> float:
    """A number in [0, 1) that a hash stands for."""
    return int(digest[:8], 16) / 2**32


def shown(lease: sqlite3.Row, thing: sqlite3.Row, now: float) -> dict[str, Any]:
    """What a rater sees of any thing: the conversation, and a handle that says nothing."""
    return {
        "lease": lease["lease"],
        "expires_s": max(0.0, lease["expires"] - now),
        "turns": [{"speaker": speaker, "text": text} for speaker, text in json.loads(thing["history"])],
        "sensitive": thing["tier"] in SENSITIVE,
    }


def row(db: sqlite3.Connection, sql: str, asked: Any) -> sqlite3.Row | None:
    """The first row that `sql` finds."""
    found: sqlite3.Row | None = db.execute(sql, asked).fetchone()
    return found
