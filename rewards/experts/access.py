"""Who may ask what: tokens, of which only hashes are kept, and the raters they belong to."""

from __future__ import annotations

import enum
import hashlib
import secrets
import sqlite3
from dataclasses import dataclass

from rewards.experts import audit
from rewards.experts.refusal import Refused
from rewards.experts.types import Kind

_DAY_S = 86_400.0


class Role(enum.StrEnum):
    """What a token is for."""

    RATER = "rater"
    RUN = "run"  # the training job
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Whose token it is; `rater` is "" for the other roles, `known_as` is the token's hash."""

    role: Role
    rater: str
    known_as: str


def who(db: sqlite3.Connection, token: str, now: float) -> Caller:
    """Raises `Refused`: 401 for a token that was never issued, 403 for one that has run out or was shut out."""
    known_as = _hash(token)
    row = db.execute("SELECT role, rater, expires, shut FROM tokens WHERE hash = ?", (known_as,)).fetchone()
    if row is None:
        raise Refused(401, "this link or token is not known here: ask for a new one")
    if row["shut"]:
        raise Refused(403, "this link or token was shut out: ask for a new one")
    if row["expires"] is not None and row["expires"] <= now:
        raise Refused(403, "this link or token has run out: ask for a new one")
    return Caller(Role(row["role"]), row["rater"] or "", known_as)


def issue(db: sqlite3.Connection, role: Role, *, rater: str | None = None, expires: float | None = None) -> str:
    """A new token. Earlier ones of the rater, or of the role where there is no rater, are void from here on."""
    db.execute("UPDATE tokens SET shut = 1 WHERE role = ? AND rater IS ?", (role, rater))
    token = secrets.token_urlsafe(32)
    db.execute(
        "INSERT INTO tokens (hash, role, rater, expires) VALUES (?, ?, ?, ?)", (_hash(token), role, rater, expires)
    )
    return token


def has(db: sqlite3.Connection, role: Role) -> bool:
    """Whether a token of this role can be used."""
    return db.execute("SELECT 1 FROM tokens WHERE role = ? AND shut = 0", (role,)).fetchone() is not None


def invite(db: sqlite3.Connection, name: str, *, crisis: bool, days: float | None, now: float) -> str:
    """The token of a rater, for `days` days or for good. Whoever is invited again gets a new one in the old one's place."""
    db.execute(
        "INSERT INTO raters (name, crisis, at) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET crisis = excluded.crisis",
        (name, crisis, now),
    )
    audit.append(db, now, Kind.RATER, {"rater": name, "did": "invited", "crisis": crisis, "days": days})
    return issue(db, Role.RATER, rater=name, expires=None if days is None else now + days * _DAY_S)


def shut(db: sqlite3.Connection, name: str, now: float) -> None:
    """Void the rater's tokens, and return what he or she holds. Ratings stay. Raises `Refused` (404) for a stranger."""
    if db.execute("SELECT 1 FROM raters WHERE name = ?", (name,)).fetchone() is None:
        raise Refused(404, f"no rater is called {name!r}: see the list of raters")
    voided = db.execute("UPDATE tokens SET shut = 1 WHERE rater = ? AND shut = 0", (name,)).rowcount
    db.execute("UPDATE leases SET state = 'returned' WHERE rater = ? AND state IN ('held', 'aside')", (name,))
    db.execute("UPDATE comparison_leases SET state = 'returned' WHERE rater = ? AND state = 'held'", (name,))
    if voided:
        audit.append(db, now, Kind.RATER, {"rater": name, "did": "shut out"})


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
