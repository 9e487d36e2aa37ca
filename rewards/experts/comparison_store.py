"""Everything that is asked of the database about comparisons, each call one transaction. Thread-safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewards.experts import comparison_desk, comparison_queue, desk, turns
from rewards.experts.comparison import Answer, Comparison
from rewards.experts.comparison_queue import COMPARISONS
from rewards.experts.config import ServiceConfig
from rewards.experts.database import Database


class Comparisons:
    """The side-by-sides of a folder: `Store.comparisons`.

    What a method returns is committed; whatever it raises, nothing of it is stored.
    """

    def __init__(self, database: Database, config: ServiceConfig, clock: Callable[[], float]) -> None:
        self._database, self._config, self._clock = database, config, clock

    # Raters

    def me(self, rater: str) -> dict[str, Any]:
        """What the page asks first: the red flags, and how far the rater is."""
        with self._database.read() as db:
            row = turns.rater(db, rater)
            done = "SELECT count(*) FROM judgements WHERE rater = ? AND undone = 0"
            return {
                "name": rater,
                "flags": desk.FORM["flags"],
                "sitting": COMPARISONS.sitting(db, self._config, rater),
                "done": db.execute(done, (rater,)).fetchone()[0],
                "crisis": bool(row["crisis"]),
                "left": COMPARISONS.left(db, row, self._clock()),
                "can_undo": COMPARISONS.last(db, rater) is not None,
            }

    def next(self, rater: str) -> dict[str, Any]:
        """The comparison that this rater holds, else a new one, else why there is none."""

        def work(db: Any) -> dict[str, Any]:
            now, row = self._clock(), turns.rater(db, rater)
            lease = comparison_queue.held(db, row, now)
            if lease is None:
                sitting = COMPARISONS.sitting(db, self._config, rater)
                if sitting["done"] >= sitting["limit"]:
                    return {"item": None, "why": "sitting"}
                lease = comparison_queue.choose(db, self._config, row, now)
            if lease is None:
                return {"item": None, "why": "empty"}
            return {"item": comparison_queue.shown(db, lease, now)}

        return self._database.write(work)

    def renew(self, rater: str, lease: str) -> float:
        """Somebody is at work: seconds until the lease runs out."""
        return self._database.write(lambda db: comparison_desk.renew(db, self._config, rater, lease, self._clock()))

    def judge(self, rater: str, told: Answer) -> tuple[str, bool, dict[str, int]]:
        """The judgement's id, whether it is new, and the sitting. Names and contacts are scrubbed from the reason."""
        from rewards.experts.scrub import scrub

        reason = scrub(told.reason)

        def work(db: Any) -> tuple[str, bool, dict[str, int]]:
            judgement, new = comparison_desk.judge(db, rater, told, reason, self._clock())
            return judgement, new, COMPARISONS.sitting(db, self._config, rater)

        return self._database.write(work)

    def skip(self, rater: str, lease: str, reason: str) -> None:
        """Give a comparison to others, for good."""
        from rewards.experts.scrub import scrub

        scrubbed = scrub(reason)
        self._database.write(lambda db: COMPARISONS.skip(db, rater, lease, scrubbed, self._clock()))

    def undo(self, rater: str) -> dict[str, Any]:
        """Take the last judgement back; its comparison as `next` gives it, with the answer as draft."""

        def work(db: Any) -> dict[str, Any]:
            now = self._clock()
            lease, draft = comparison_desk.undo(db, self._config, rater, now)
            return {"item": {**comparison_queue.shown(db, lease, now), "draft": draft}}

        return self._database.write(work)

    # Whoever asks

    def add(self, asked: Sequence[Comparison]) -> list[str]:
        """Put comparisons into the queue; their ids, in order. Names and contacts are scrubbed before anything is stored."""
        shown = [one.scrubbed() for one in asked]

        def work(db: Any) -> None:
            now = self._clock()
            for one in shown:
                comparison_desk.put(db, one, now)

        self._database.write(work)
        return [one.id for one in shown]

    def close_others(self, ids: Sequence[str]) -> int:
        """Take all but these out of the queue; judgements on the way still count. How many were open."""
        return self._database.write(lambda db: comparison_desk.close_others(db, ids))

    def page(self) -> str:
        """Where raters begin: "compare" on a service that has comparisons and no replies to rate, else ""."""
        with self._database.read() as db:
            compares = db.execute("SELECT 1 FROM comparisons LIMIT 1").fetchone() is not None
            rates = db.execute("SELECT 1 FROM items LIMIT 1").fetchone() is not None
        return "compare" if compares and not rates else ""

    def counts(self) -> dict[str, Any]:
        """How far the comparisons are, for the admin: nothing that tells which arm is ahead.

        `asked` are those that are open or were judged, without those of one text (`same`); `done` have all their
        judgements, `begun` some. `raters` has [name, judgements, skipped] of each who did something.
        """
        with self._database.read() as db:
            done, begun, asked = db.execute(
                "SELECT coalesce(sum(judged >= raters), 0), coalesce(sum(judged BETWEEN 1 AND raters - 1), 0), count(*) "
                "FROM comparisons WHERE same = 0 AND (open = 1 OR judged > 0)"
            ).fetchone()
            same = db.execute("SELECT count(*) FROM comparisons WHERE same = 1 AND open = 1").fetchone()[0]
            leased = "SELECT count(*) FROM comparison_leases WHERE state = 'held' AND expires > ?"
            held = db.execute(leased, (self._clock(),)).fetchone()[0]
            judged = Counter(row["rater"] for row in db.execute("SELECT rater FROM judgements WHERE undone = 0"))
            skips = "SELECT rater FROM comparison_leases WHERE state = 'skipped'"
            skipped = Counter(row["rater"] for row in db.execute(skips))
        return {
            "asked": asked, "done": done, "begun": begun, "same": same, "leased": held,
            "judgements": judged.total(),
            "raters": [[name, judged[name], skipped[name]] for name in sorted(judged.keys() | skipped.keys())],
        }  # fmt: skip
