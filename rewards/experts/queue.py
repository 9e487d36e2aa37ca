"""Which reply is whose turn: items come in, are leased to raters, and return when a lease runs out.

item.raters  >=  ratings that stand  +  live leases
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from rewards.danger import IN_DANGER
from rewards.experts import audit
from rewards.experts.config import ServiceConfig
from rewards.experts.refusal import Refused
from rewards.experts.types import Item, Kind

_SENSITIVE = tuple(sorted(tier.value for tier in IN_DANGER))
_LEFT_AT_MOST = 1000  # what `left` counts up to: nobody plans a sitting beyond it

# What this rater may be given: it waits, is not too hard to bear, was not judged or refused by this rater, and ratings and
# other raters' live leases leave room. The first line is the condition of the index items_waiting, word by word.
_WAITING = f"""
    FROM items i WHERE i.open = 1 AND i.rated < i.raters
    AND (:crisis OR i.tier NOT IN ({", ".join(f"'{tier}'" for tier in _SENSITIVE)}))
    AND NOT EXISTS (
        SELECT 1 FROM leases mine WHERE mine.item = i.id AND mine.rater = :rater AND mine.state IN ('rated', 'skipped'))
    AND i.rated + (SELECT count(*) FROM leases l WHERE l.item = i.id AND l.state = 'held' AND l.repeat = 0
        AND l.expires > :now AND l.rater <> :rater) < i.raters
"""
_REPEATABLE = f"""
    FROM ratings r JOIN items i ON i.id = r.item
    WHERE r.rater = :rater AND r.repeat = 0 AND r.undone = 0 AND r.seq <= :latest
    AND (:crisis OR i.tier NOT IN ({", ".join(f"'{tier}'" for tier in _SENSITIVE)}))
    AND NOT EXISTS (SELECT 1 FROM leases mine WHERE mine.item = i.id AND mine.rater = :rater AND mine.repeat = 1
        AND mine.state IN ('rated', 'skipped'))
"""


def put(db: sqlite3.Connection, config: ServiceConfig, item: Item, now: float) -> None:
    """Take an item in, unless it is here. Its texts stay out of the chain, which holds the hash of them: the item's id."""
    raters = max(item.wanted, config.overlap_raters) if _share(item.id) < config.overlap else item.wanted
    history = audit.canonical([[turn.speaker, turn.text] for turn in item.history])
    told = {"id": item.id, "key": item.key, "tier": item.tier, "wanted": item.wanted, "priority": item.priority}
    added = db.execute(
        "INSERT INTO items (id, key, history, reply, tier, wanted, priority, origin, at, raters) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            *(item.id, item.key, history, item.reply, item.tier, item.wanted, item.priority),
            *(audit.canonical(item.origin), now, raters),
        ),
    )
    if added.rowcount:
        audit.append(db, now, Kind.ITEM, {**told, "raters": raters, "origin": item.origin})


def close(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Nobody needs these any more. Who has one open may finish it."""
    known(db, ids)
    db.executemany("UPDATE items SET open = 0 WHERE id = ?", [(one,) for one in ids])


def known(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Raises `Refused` (404) for the first id that is no item's."""
    for one in ids:
        if db.execute("SELECT 1 FROM items WHERE id = ?", (one,)).fetchone() is None:
            raise Refused(404, f"no item has the id {one!r}: send it to /api/run/items first")


def left(db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> int:
    """Items that this rater could be given now, up to 1,000."""
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now, "most": _LEFT_AT_MOST}
    return int(db.execute(f"SELECT count(*) FROM (SELECT 1 {_WAITING} LIMIT :most)", asked).fetchone()[0])


def held(db: sqlite3.Connection, rater: str, now: float) -> sqlite3.Row | None:
    """The lease that this rater has and that has not run out."""
    return _row(db, "SELECT * FROM leases WHERE rater = ? AND state = 'held' AND expires > ?", (rater, now))


def choose(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """A new lease on what comes next for this rater; None where nothing waits.

    Highest priority first, then oldest. With probability `repeats`, drawn from the rater's name and how much he or she
    has done, it is something rated at least `repeat_gap` ratings ago: only while there is work, so that "nothing left" is true.
    """
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now}
    first = _row(db, f"SELECT i.id {_WAITING} ORDER BY i.priority DESC, i.seq LIMIT 1", asked)
    if first is None:
        return None
    repeated = _repeated(db, config, rater)
    if repeated is not None:
        return give(db, config, rater["name"], repeated, now, repeat=True)
    return give(db, config, rater["name"], first["id"], now)


def give(
    db: sqlite3.Connection,
    config: ServiceConfig,
    rater: str,
    item: str,
    now: float,
    *,
    repeat: bool = False,
    draft: dict[str, Any] | None = None,
) -> sqlite3.Row:
    """Lease `item` to `rater`, who lets go of anything else; a draft of it that was left behind is there again."""
    db.execute("UPDATE leases SET state = 'returned' WHERE rater = ? AND state = 'held'", (rater,))
    before = _row(
        db,
        "SELECT draft FROM leases WHERE rater = ? AND item = ? AND repeat = ? AND state = 'returned' AND draft IS NOT NULL "
        "ORDER BY given DESC LIMIT 1",
        (rater, item, repeat),
    )
    text = audit.canonical(draft) if draft else before["draft"] if before else None
    lease = secrets.token_hex(16)
    db.execute(
        "INSERT INTO leases (lease, item, rater, given, expires, repeat, state, draft) VALUES (?, ?, ?, ?, ?, ?, 'held', ?)",
        (lease, item, rater, now, now + config.lease_s, repeat, text),
    )
    return db.execute("SELECT * FROM leases WHERE lease = ?", (lease,)).fetchone()


def shown(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> dict[str, Any]:
    """What a rater sees: the texts, and a handle that says nothing."""
    item = db.execute("SELECT history, reply, tier FROM items WHERE id = ?", (lease["item"],)).fetchone()
    return {
        "lease": lease["lease"],
        "expires_s": max(0.0, lease["expires"] - now),
        "turns": [{"speaker": speaker, "text": text} for speaker, text in json.loads(item["history"])],
        "reply": item["reply"],
        "sensitive": item["tier"] in _SENSITIVE,
        "draft": json.loads(lease["draft"]) if lease["draft"] else None,
    }


def usable(db: sqlite3.Connection, rater: str, lease: str, now: float) -> sqlite3.Row:
    """The lease, if this rater may still work under it: it is live, or it ran out and its place was not taken.

    Raises `Refused`: 404 for a handle that was never given, 409 for another's, a finished or a lost one.
    """
    row = _row(db, "SELECT * FROM leases WHERE lease = ?", (lease,))
    if row is None:
        raise Refused(404, "lease must be one that was given by /api/next, is not known: ask for the next reply")
    if row["rater"] != rater:
        raise Refused(409, "lease must be your own, belongs to another rater: ask for the next reply")
    if row["state"] == "rated":
        raise Refused(409, "this reply is already rated: ask for the next one, or undo")
    if row["state"] != "held":
        raise Refused(409, "this reply was given back: ask for the next one")
    if row["expires"] <= now and not row["repeat"] and not _has_room(db, row, now):
        raise Refused(409, "the time for this reply is over and another rater has it now: ask for the next one")
    return row


def renew(db: sqlite3.Connection, config: ServiceConfig, lease: str, now: float) -> None:
    """The rater is at work: the time starts anew."""
    db.execute("UPDATE leases SET expires = ? WHERE lease = ?", (now + config.lease_s, lease))


def _has_room(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> bool:
    item = db.execute("SELECT raters, rated FROM items WHERE id = ?", (lease["item"],)).fetchone()
    others = db.execute(
        "SELECT count(*) FROM leases WHERE item = ? AND state = 'held' AND repeat = 0 AND expires > ? AND rater <> ?",
        (lease["item"], now, lease["rater"]),
    ).fetchone()[0]
    return bool(item["rated"] + others < item["raters"])


def _repeated(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row) -> str | None:
    """What this rater is given again now, if it is time for that."""
    finished = "SELECT count(*) FROM leases WHERE rater = ? AND state IN ('rated', 'skipped')"
    count = db.execute(finished, (rater["name"],)).fetchone()[0]
    drawn = f"{rater['name']}\n{count}"
    if _share(hashlib.sha256(drawn.encode()).hexdigest()) >= config.repeats:
        return None
    ago = "SELECT seq FROM ratings WHERE rater = ? AND undone = 0 ORDER BY seq DESC LIMIT 1 OFFSET ?"
    latest = _row(db, ago, (rater["name"], config.repeat_gap - 1))
    if latest is None:
        return None
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "latest": latest["seq"]}
    candidates = db.execute(f"SELECT count(*) {_REPEATABLE}", asked).fetchone()[0]
    if not candidates:
        return None
    place = int(_share(hashlib.sha256(f"{drawn}\nwhich".encode()).hexdigest()) * candidates)
    return str(db.execute(f"SELECT i.id {_REPEATABLE} ORDER BY r.seq LIMIT 1 OFFSET {place}", asked).fetchone()[0])


def _share(digest: str) -> float:
    """A number in [0, 1) that a hash stands for."""
    return int(digest[:8], 16) / 2**32


def _row(db: sqlite3.Connection, sql: str, asked: Any) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(sql, asked).fetchone()
    return row
