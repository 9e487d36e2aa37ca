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
from rewards.experts.queue import REPLIES
from rewards.experts.refusal import Refused
from rewards.experts.turns import rater
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


def rate(db: sqlite3.Connection, name: str, told: Submission, reason: str, now: float) -> tuple[str, bool]:
    """The rating's id, and whether it is new. `reason` is what is stored of the reason: names and contacts are out of it.

    Raises `Refused` (409) where the submission is known with another content, and as `Turns.usable` does.
    """
    if (known := REPLIES.known(db, name, told)) is not None:
        return known, False
    lease = REPLIES.usable(db, name, told.lease, now)
    rating = Rating(
        secrets.token_hex(16), lease["item"], name, told.criteria, told.overall, tuple(told.flags), reason,
        bool(lease["repeat"]), told.seconds, now,
    )  # fmt: skip
    REPLIES.keep(db, told, lease, rating.to_dict(), now)
    return rating.id, True


def keep_draft(
    db: sqlite3.Connection, config: ServiceConfig, name: str, lease: str, draft: Mapping[str, Any], now: float
) -> float:
    """Keep a form that is not finished, and the reply with its rater; seconds until the lease runs out."""
    REPLIES.usable(db, name, lease, now)
    left = REPLIES.renew(db, config, lease, now)
    db.execute("UPDATE leases SET draft = ? WHERE lease = ?", (audit.canonical(draft), lease))
    return left


def undo(db: sqlite3.Connection, config: ServiceConfig, name: str, now: float) -> sqlite3.Row:
    """Take the last rating of this sitting back; a lease on its reply, with the rating as draft.

    Raises `Refused` (409) where there is none, it was taken back already, or its reward is fixed.
    """
    last = REPLIES.to_undo(db, name)
    if not last["repeat"] and _is_fixed(db, last["item"]):
        raise Refused(409, "undo must come before a rating is used, this one is in use already: it stands")
    REPLIES.take_back(db, last, now)
    told = json.loads(last["body"])
    draft = {part: told[part] for part in ("criteria", "overall", "flags", "reason")}
    return queue.give(db, config, name, last["item"], now, repeat=bool(last["repeat"]), draft=draft)


def can_undo(db: sqlite3.Connection, name: str) -> bool:
    """Whether `undo` would take something back."""
    last = REPLIES.last(db, name)
    return last is not None and (bool(last["repeat"]) or not _is_fixed(db, last["item"]))


def settle(db: sqlite3.Connection, name: str, crisis: bool, now: float) -> None:
    """Whether this rater will see replies to people in danger; one that he or she holds and will not see goes back."""
    if bool(rater(db, name)["crisis"]) == crisis:
        return
    db.execute("UPDATE raters SET crisis = ? WHERE name = ?", (crisis, name))
    audit.append(db, now, Kind.RATER, {"rater": name, "did": "chose", "crisis": crisis})
    lease = queue.held(db, name, now)
    if not crisis and lease is not None and queue.shown(db, lease, now)["sensitive"]:
        db.execute("UPDATE leases SET state = 'returned' WHERE lease = ?", (lease["lease"],))


def _is_fixed(db: sqlite3.Connection, item: str) -> bool:
    return db.execute("SELECT 1 FROM rewards WHERE item = ?", (item,)).fetchone() is not None
