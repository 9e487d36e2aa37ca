"""The store of the expert loop: everything that is asked of the database, each call one transaction. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rewards.experts import access, audit, desk, fixing, intake, ledger, queue, transfer
from rewards.experts.comparison_store import Comparisons
from rewards.experts.config import ServiceConfig
from rewards.experts.database import Database
from rewards.experts.desk import Submission
from rewards.experts.refusal import Refused
from rewards.experts.types import Item, Kind, Rating

if TYPE_CHECKING:  # it imports scipy
    from rewards.experts.overview import Overview

DATABASE = "ratings.sqlite"
_TRIES = 20  # computations of a reward while ratings of the same items come and go
_RATINGS_A_PAGE = 2000


class Store:
    """The queue, the ratings and the audit chain of one folder.

    `aggregate`, a function whose name goes into the chain, turns all ratings that count into a value and a standard error
    per item. What a method returns is committed; whatever it raises, nothing of it is stored. `clock` gives seconds since
    1970.
    """

    def __init__(
        self,
        folder: Path,
        config: ServiceConfig,
        aggregate: fixing.Aggregate,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.clock = config, clock
        self._aggregate = aggregate
        self._overview: Overview | None = None
        self._overview_lock = threading.Lock()
        self.database = Database(folder / DATABASE)
        self.comparisons = Comparisons(self.database, config, clock)

    def close(self) -> None:
        """Finish what is waiting, and let go of the file."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Tokens

    def who(self, token: str) -> access.Caller:
        """Whose token it is. Raises `Refused` (401, 403)."""
        with self.database.read() as db:
            return access.who(db, token, self.clock())

    def issue(self, role: access.Role) -> str:
        """A new token for the training job or the admin; the earlier one is void."""
        return self.database.write(lambda db: access.issue(db, role))

    def has(self, role: access.Role) -> bool:
        """Whether a token of this role was ever issued and is not shut out."""
        with self.database.read() as db:
            return access.has(db, role)

    def invite(self, name: str, *, crisis: bool = False, days: float | None = None) -> str:
        """The token of a rater; whoever is invited again gets a new one in the old one's place."""
        return self.database.write(lambda db: access.invite(db, name, crisis=crisis, days=days, now=self.clock()))

    def shut(self, name: str) -> None:
        """Shut a rater out; ratings stay."""
        self.database.write(lambda db: access.shut(db, name, self.clock()))

    # Raters

    def me(self, rater: str) -> dict[str, Any]:
        """What the page asks first: the form, and how far the rater is."""
        with self.database.read() as db:
            row = desk.rater(db, rater)
            done = db.execute("SELECT count(*) FROM ratings WHERE rater = ? AND undone = 0", (rater,)).fetchone()[0]
            return {
                "name": rater,
                "form": desk.FORM,
                "sitting": queue.REPLIES.sitting(db, self.config, rater),
                "done": done,
                "crisis": bool(row["crisis"]),
                "left": queue.REPLIES.left(db, row, self.clock()),
                "can_undo": desk.can_undo(db, rater),
            }

    def next(self, rater: str) -> dict[str, Any]:
        """The reply that this rater holds, else a new one, else why there is none."""

        def work(db: Any) -> dict[str, Any]:
            now = self.clock()
            lease = queue.held(db, rater, now)
            if lease is None:
                sitting = queue.REPLIES.sitting(db, self.config, rater)
                if sitting["done"] >= sitting["limit"]:
                    return {"item": None, "why": "sitting"}
                lease = queue.choose(db, self.config, desk.rater(db, rater), now)
            return {"item": None, "why": "empty"} if lease is None else {"item": queue.shown(db, lease, now)}

        return self.database.write(work)

    def draft(self, rater: str, lease: str, draft: Mapping[str, Any]) -> float:
        """Keep an unfinished form, without names and contacts; seconds until the lease runs out."""
        from rewards.experts.scrub import scrub

        kept = {**draft, "reason": scrub(draft["reason"])}
        return self.database.write(lambda db: desk.keep_draft(db, self.config, rater, lease, kept, self.clock()))

    def rate(self, rater: str, told: Submission) -> tuple[str, bool, dict[str, int]]:
        """The rating's id, whether it is new, and the sitting. Names and contacts are scrubbed from the reason."""
        from rewards.experts.scrub import scrub

        reason = scrub(told.reason)

        def work(db: Any) -> tuple[str, bool, dict[str, int]]:
            rating, new = desk.rate(db, rater, told, reason, self.clock())
            return rating, new, queue.REPLIES.sitting(db, self.config, rater)

        return self.database.write(work)

    def skip(self, rater: str, lease: str, reason: str) -> None:
        """Give a reply to others, for good."""
        from rewards.experts.scrub import scrub

        scrubbed = scrub(reason)
        self.database.write(lambda db: queue.REPLIES.skip(db, rater, lease, scrubbed, self.clock()))

    def undo(self, rater: str) -> dict[str, Any]:
        """Take the last rating back; its reply as `next` gives it, with the rating as draft."""

        def work(db: Any) -> dict[str, Any]:
            now = self.clock()
            return {"item": queue.shown(db, desk.undo(db, self.config, rater, now), now)}

        return self.database.write(work)

    def settle(self, rater: str, *, crisis: bool) -> None:
        """Whether this rater will see replies to people in danger."""
        self.database.write(lambda db: desk.settle(db, rater, crisis, self.clock()))

    def sit(self, rater: str) -> dict[str, int]:
        """Start a new sitting."""

        def work(db: Any) -> dict[str, int]:
            db.execute("UPDATE raters SET sitting = sitting + 1 WHERE name = ?", (rater,))
            return queue.REPLIES.sitting(db, self.config, rater)

        return self.database.write(work)

    # The training job

    def add(self, items: Sequence[Item]) -> list[str]:
        """Put items into the queue; their ids, in order. Names and contacts are scrubbed before anything is stored.

        An item that is here is open again, with the new priority and the higher of both numbers of raters."""
        shown = [transfer.scrubbed(item) for item in items]

        def work(db: Any) -> None:
            now = self.clock()
            for item in shown:
                if not intake.put(db, self.config, item, now):
                    intake.put_again(db, self.config, item, now)

        self.database.write(work)
        return [item.id for item in shown]

    def missing(self, ids: Sequence[str], least: int, settle_s: float = 0.0) -> list[str]:
        """Those of `ids` that have neither a reward nor `least` ratings, all settled, yet; see `fixing.missing`."""
        with self.database.read() as db:
            return fixing.missing(db, ids, least, self.clock(), settle_s)

    def stuck(self, ids: Sequence[str], least: int) -> dict[str, str]:
        """Those of `ids` that no active rater may be given while ratings are missing, and why; see `queue.stuck`."""
        with self.database.read() as db:
            return queue.stuck(db, ids, least, self.clock())

    def rewards(
        self,
        run: str,
        step: int,
        ids: Sequence[str],
        least: int,
        *,
        every: bool = False,
        settle_s: float = 0.0,
        fix: bool = True,
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Fix the rewards of those `ids` that are not `missing`, or none of them where `every` one must be there; the
        rewards by item, and the ids that are missing. Without `fix` only rewards that are fixed already are told."""
        for _ in range(_TRIES):
            with self.database.read() as db:
                db.execute("BEGIN")  # one view of the ratings for all that follows
                try:
                    absent = fixing.missing(db, ids, least, self.clock(), settle_s)
                    known = fixing.fixed(db, ids)
                    wanted = [one for one in dict.fromkeys(ids) if one not in known and one not in absent]
                    wanted = wanted if fix and not (every and absent) else []
                    ratings = [each for _, each in fixing.counted(db)] if wanted else []
                    groups = fixing.groups(db) if wanted else {}
                finally:
                    db.execute("COMMIT")
            if not wanted:
                return known, absent
            computed = fixing.compute(ratings, groups, wanted, self._aggregate, run=run, step=step)
            self._fix(computed)
        raise Refused(503, "ratings of these items come and go faster than rewards are computed: ask again", 1.0)

    def close_items(self, ids: Sequence[str], run: str | None = None, from_step: int | None = None) -> int:
        """Nobody needs these any more, nor what `run` asked at `from_step` and later; ratings on the way still count. How many
        were open."""

        def work(db: Any) -> int:
            closed = intake.close(db, ids)
            return closed if run is None or from_step is None else closed + intake.close_from(db, run, from_step)

        return self.database.write(work)

    def ratings(self, after: int = 0) -> tuple[list[tuple[int, Rating]], int]:
        """Ratings that stand and are no repeats after row `after` of the chain, at most 2,000, and the last one's row."""
        with self.database.read() as db:
            found = fixing.counted(db, after, _RATINGS_A_PAGE)
        return found, found[-1][0] if found else after

    def event(self, kind: Kind, body: Mapping[str, Any]) -> int:
        """Write an event of training into the chain; its row. The newest event of its kind and run, sent again, is one."""
        text, run = audit.canonical(body), str(body.get("run", ""))

        def work(db: Any) -> int:
            last = db.execute("SELECT seq, body FROM events WHERE kind = ? AND run = ?", (kind, run)).fetchone()
            if last is not None and last["body"] == text:
                return int(last["seq"])
            seq = audit.append(db, self.clock(), kind, body)
            db.execute(
                "INSERT OR REPLACE INTO events (kind, run, seq, body) VALUES (?, ?, ?, ?)", (kind, run, seq, text)
            )
            return seq

        return self.database.write(work)

    # Files

    def export(self, shape: str) -> bytes:
        """Everything as a file of `rewards.experts.exchange.Shape`, raters under pseudonyms."""
        from rewards.experts.exchange import Shape, dump

        salt = self.database.write(transfer.salt)
        with self.database.read() as db:
            items, ratings = transfer.told(db)
        return dump(items, ratings, Shape(shape), salt)

    def take_in(self, shape: str, data: bytes) -> tuple[int, int]:
        """How many items and ratings of such a file were new. Raises ValueError that names the row that is none."""
        from rewards.experts.exchange import Shape, load
        from rewards.experts.scrub import scrub

        items, ratings = load(data, Shape(shape), "the file")
        shown = {item.id: transfer.scrubbed(item) for item in items}
        reasoned = [replace(rating, reason=scrub(rating.reason)) for rating in ratings]
        return self.database.write(lambda db: transfer.take_in(db, self.config, shown, reasoned, self.clock()))

    # The audit

    def verify(self) -> audit.Head:
        """The end of the chain. Raises ValueError that names the first row that is not what was written."""
        with self.database.read() as db:
            return ledger.check(db)

    def trace(self, run: str, step: int) -> audit.Trace:
        """Which ratings moved the checkpoint of `run` after `step` steps."""
        with self.database.read() as db:
            return audit.trace(audit.rows(db), run, step)

    def overview(self) -> dict[str, Any]:
        """Numbers for the admin's page; those that follow from the chain are computed once per row of it."""
        with self._overview_lock, self.database.read() as db:
            if self._overview is None:
                from rewards.experts.overview import Overview

                self._overview = Overview()
            return self._overview.told(db, self.clock())

    def _fix(self, computed: Mapping[str, Mapping[str, Any]]) -> bool:
        return self.database.write(lambda db: fixing.fix(db, computed, self.clock()))
