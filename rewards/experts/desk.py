"""What a rater does with a reply: rate it, put a draft down, skip it, take the last rating back."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.experts import audit, queue
from rewards.experts.config import ServiceConfig
from rewards.experts.form import CRITERIA, FLAGS, OVERALL, VERSION
from rewards.experts.refusal import Refused
from rewards.experts.types import Kind, Rating

FORM: Mapping[str, Any] = {
    "version": VERSION,
    "criteria": [asdict(criterion) for criterion in CRITERIA],
    "overall": asdict(OVERALL),
    "flags": [{"name": flag.value, "title": title} for flag, title in FLAGS.items()],
}
"""What is asked, as the page gets it."""


@dataclass(frozen=True)
class Submission:
    """What the page sends: the form as filled in, under an id of the page's making that makes sending it twice harmless."""

    lease: str
    submission: str
    criteria: Mapping[str, float]
    overall: float
    flags: Sequence[str] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def content(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(audit.canonical([*vars(self).values()]).encode()).hexdigest()


def rater(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The rater's row."""
    row: sqlite3.Row = db.execute("SELECT * FROM raters WHERE name = ?", (name,)).fetchone()
    return row


def sitting(db: sqlite3.Connection, config: ServiceConfig, name: str) -> dict[str, int]:
    """How far the sitting is."""
    done = "SELECT count(*) FROM ratings WHERE rater = ? AND sitting = ? AND undone = 0"
    return {"done": db.execute(done, (name, rater(db, name)["sitting"])).fetchone()[0], "limit": config.sitting}


def rate(
    db: sqlite3.Connection, config: ServiceConfig, name: str, told: Submission, reason: str, now: float
) -> tuple[str, bool]:
    """The rating's id, and whether it is new. `reason` is what is stored of the reason: names and contacts are out of it.

    Raises `Refused` (409) where the submission is known with another content, and as `queue.usable` does.
    """
    known = db.execute("SELECT id, rater, content FROM ratings WHERE submission = ?", (told.submission,)).fetchone()
    if known is not None:
        if (known["rater"], known["content"]) != (name, told.content):
            raise Refused(409, "submission must be new for each rating, is known with another content: send a new id")
        return known["id"], False
    lease = queue.usable(db, name, told.lease, now)
    rating = Rating(
        secrets.token_hex(16), lease["item"], name, told.criteria, told.overall, tuple(told.flags), reason,
        bool(lease["repeat"]), told.seconds, now,
    )  # fmt: skip
    body = rating.to_dict()
    seq = audit.append(db, now, Kind.RATING, body)
    db.execute(
        "INSERT INTO ratings (seq, id, item, rater, lease, submission, content, body, repeat, sitting, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(seq, rating.id, rating.item, name, told.lease, told.submission, told.content, audit.canonical(body)),
            *(rating.repeat, rater(db, name)["sitting"], now),
        ),
    )
    db.execute("UPDATE leases SET state = 'rated' WHERE lease = ?", (told.lease,))
    if not rating.repeat:
        db.execute("UPDATE items SET rated = rated + 1 WHERE id = ?", (rating.item,))
    return rating.id, True


def keep_draft(
    db: sqlite3.Connection, config: ServiceConfig, name: str, lease: str, draft: Mapping[str, Any], now: float
) -> float:
    """Keep a form that is not finished, and the reply with its rater; seconds until the lease runs out."""
    queue.usable(db, name, lease, now)
    queue.renew(db, config, lease, now)
    db.execute("UPDATE leases SET draft = ? WHERE lease = ?", (audit.canonical(draft), lease))
    return config.lease_s


def skip(db: sqlite3.Connection, name: str, lease: str, reason: str, now: float) -> None:
    """Give the reply to others; this rater will not see it again."""
    row = queue.usable(db, name, lease, now)
    db.execute("UPDATE leases SET state = 'skipped' WHERE lease = ?", (lease,))
    told = {"item": row["item"], "rater": name, "reason": reason, "repeat": bool(row["repeat"])}
    audit.append(db, now, Kind.SKIP, told)


def undo(db: sqlite3.Connection, config: ServiceConfig, name: str, now: float) -> sqlite3.Row:
    """Take the last rating of this sitting back; a lease on its reply, with the rating as draft.

    Raises `Refused` (409) where there is none, it was taken back already, or its reward is fixed.
    """
    last = _last(db, name)
    if last is None or last["undone"]:
        raise Refused(409, "undo takes back the last rating of this sitting, once: there is none to take back")
    if not last["repeat"] and _is_fixed(db, last["item"]):
        raise Refused(409, "undo must come before a rating is used, this one is in use already: it stands")
    db.execute("UPDATE ratings SET undone = 1 WHERE seq = ?", (last["seq"],))
    db.execute("UPDATE leases SET state = 'returned' WHERE lease = ?", (last["lease"],))
    if not last["repeat"]:
        db.execute("UPDATE items SET rated = rated - 1 WHERE id = ?", (last["item"],))
    audit.append(db, now, Kind.UNDO, {"rating": last["id"], "item": last["item"], "rater": name})
    told = json.loads(last["body"])
    draft = {part: told[part] for part in ("criteria", "overall", "flags", "reason")}
    return queue.give(db, config, name, last["item"], now, repeat=bool(last["repeat"]), draft=draft)


def can_undo(db: sqlite3.Connection, name: str) -> bool:
    """Whether `undo` would take something back."""
    last = _last(db, name)
    return last is not None and not last["undone"] and (bool(last["repeat"]) or not _is_fixed(db, last["item"]))


def settle(db: sqlite3.Connection, name: str, crisis: bool, now: float) -> None:
    """Whether this rater will see replies to people in danger; one that he or she holds and will not see goes back."""
    if bool(rater(db, name)["crisis"]) == crisis:
        return
    db.execute("UPDATE raters SET crisis = ? WHERE name = ?", (crisis, name))
    audit.append(db, now, Kind.RATER, {"rater": name, "did": "chose", "crisis": crisis})
    lease = queue.held(db, name, now)
    if not crisis and lease is not None and queue.shown(db, lease, now)["sensitive"]:
        db.execute("UPDATE leases SET state = 'returned' WHERE lease = ?", (lease["lease"],))


def _last(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM ratings WHERE rater = ? AND sitting = ? ORDER BY seq DESC LIMIT 1",
        (name, rater(db, name)["sitting"]),
    ).fetchone()
    return row


def _is_fixed(db: sqlite3.Connection, item: str) -> bool:
    return db.execute("SELECT 1 FROM rewards WHERE item = ?", (item,)).fetchone() is not None
