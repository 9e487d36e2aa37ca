"""Ratings by many raters over HTTP, with the service killed at random moments: what is lost, what is counted twice, how fast.

    python -m tests.benchmarks.ratings [--ratings 10000] [--raters 50] [--kills 20] [--seed 0] [--folder DIR] [--out FILE.json]

Every rater asks for the next reply and sends a rating of it, again and again. A request that gets no answer is sent again
until it gets one, a rating under the same submission id. kill -9 hits the service at moments drawn at random over the run.
At the end the database is opened and compared with what the raters were told: every rating that was acknowledged is there
once, nothing else is, the chain is sound. Exits 1 otherwise. Latency is that of answered requests; the time from a kill
until the service answers again is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rewards.experts import audit, ledger
from rewards.experts.config import ServiceConfig
from rewards.experts.database import Database
from rewards.experts.form import CRITERIA
from rewards.experts.serve import Server
from rewards.experts.store import DATABASE
from rewards.experts.types import Item
from rollout.types import Speaker, Turn

UNLIMITED = ServiceConfig(
    sitting=1_000_000, overlap=0.0, repeats=0.0, rate_per_s=1e6, burst=10**6, anonymous_per_s=1e6, anonymous_burst=10**6
)
_PAUSE_S = 0.02  # before a request that got no answer is sent again
_PATIENCE_S = 60.0


@dataclass
class Tally:
    """What the raters were told."""

    wanted: int
    acknowledged: dict[str, str] = field(default_factory=dict)  # rating by submission
    seconds: list[float] = field(default_factory=list)
    unanswered: int = 0
    repeated: int = 0  # submissions that the service had already, sent again after a lost answer
    statuses: Counter[int] = field(default_factory=Counter)


def replies(count: int) -> list[Item]:
    """So many different replies."""
    said = (Turn(Speaker.CLIENT, "I'm feeling depressed and hopeless. Can you help me?"),)
    return [Item(f"bench/0/prompt/{at}", said, f"That sounds heavy. Reply {at}.") for at in range(count)]


async def storm(server: Server, tokens: Sequence[str], tally: Tally) -> None:
    """All raters at once, until `tally.wanted` ratings are acknowledged."""
    await asyncio.gather(*(_rater(server, token, tally) for token in tokens))


async def _rater(server: Server, token: str, tally: Tally) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers, timeout=_PATIENCE_S, trust_env=False) as client:
        while len(tally.acknowledged) < tally.wanted:
            told = (await _ask(client, server, tally, "next", {})).json()
            if told["item"] is None:
                return
            submission = str(uuid.uuid4())
            body = {
                "lease": told["item"]["lease"], "submission": submission, "overall": 0.6, "flags": [], "reason": "warm",
                "criteria": dict.fromkeys((criterion.name for criterion in CRITERIA), 0.6), "seconds": 1.0,
            }  # fmt: skip
            response = await _ask(client, server, tally, "ratings", body)
            tally.repeated += response.status_code == 200
            if response.status_code in {200, 201}:
                tally.acknowledged[submission] = response.json()["rating"]


async def _ask(
    client: httpx.AsyncClient, server: Server, tally: Tally, name: str, body: dict[str, Any]
) -> httpx.Response:
    while True:
        started = time.perf_counter()
        try:
            response = await client.post(f"{server.url}/api/{name}", json=body)
        except httpx.TransportError:
            tally.unanswered += 1
            await asyncio.sleep(_PAUSE_S)
            continue
        tally.seconds.append(time.perf_counter() - started)
        tally.statuses[response.status_code] += 1
        if response.status_code < 500:
            return response
        await asyncio.sleep(_PAUSE_S)


async def _kill(server: Server, tally: Tally, moments: Sequence[int]) -> list[float]:
    """kill -9 whenever one of `moments` (numbers of ratings) has passed; seconds until the service was there again."""
    away_s = []
    for moment in moments:
        while len(tally.acknowledged) < moment:
            await asyncio.sleep(0.001)
        started = time.perf_counter()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        await asyncio.to_thread(server.start)
        away_s.append(time.perf_counter() - started)
    return away_s


async def measure(folder: Path, ratings: int, raters: int, kills: int, seed: int) -> dict[str, Any]:
    """One run; what it came to."""
    tally = Tally(ratings)
    with Server(folder, UNLIMITED) as server:
        tokens = await _prepare(server, ratings + raters, raters)
        moments = sorted(random.Random(seed).sample(range(1, ratings), kills))
        started = time.perf_counter()
        _, away_s = await asyncio.gather(storm(server, tokens, tally), _kill(server, tally, moments))
        wall_s = time.perf_counter() - started
    asked = sorted(tally.seconds)
    return {
        "ratings": len(tally.acknowledged), "raters": raters, "kills": kills, **compared(folder, tally),
        "requests": len(asked), "unanswered": tally.unanswered, "answered_again": tally.repeated,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())}, "wall_s": round(wall_s, 2),
        "away_s": round(sum(away_s), 2), "requests_per_s": round(len(asked) / (wall_s - sum(away_s)), 1),
        "ratings_per_s": round(len(tally.acknowledged) / (wall_s - sum(away_s)), 1),
        "latency_ms": {f"p{share}": round(1000 * asked[len(asked) * share // 100], 1) for share in (50, 90, 99)},
        "slowest_ms": round(1000 * asked[-1], 1),
    }  # fmt: skip


async def _prepare(server: Server, items: int, raters: int) -> list[str]:
    from rewards.experts.client import RunClient

    await asyncio.to_thread(RunClient(server.url, server.token).add, replies(items))
    headers = {"Authorization": f"Bearer {server.admin_link.partition('#')[2]}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False, base_url=server.url) as client:
        invited = [await client.post("/api/admin/raters", json={"name": f"rater{at}"}) for at in range(raters)]
    return [response.json()["token"] for response in invited]


def compared(folder: Path, tally: Tally) -> dict[str, Any]:
    """What the database holds, against what the raters were told."""
    database = Database(folder / DATABASE)
    with database.read() as db:
        end = ledger.check(db)
        stored = {row["submission"]: row["id"] for row in db.execute("SELECT submission, id FROM ratings")}
        doubled = db.execute("SELECT count(*) - count(DISTINCT item || rater) FROM ratings").fetchone()[0]
        over = db.execute("SELECT count(*) FROM items WHERE rated > raters").fetchone()[0]
        miscounted = db.execute(
            "SELECT count(*) FROM items i WHERE rated <> (SELECT count(*) FROM ratings r WHERE r.item = i.id)"
        ).fetchone()[0]
        chained = Counter(row.kind for row in audit.rows(db))["rating"]
    database.close()
    lost = [one for one, rating in tally.acknowledged.items() if stored.get(one) != rating]
    return {
        "lost": len(lost), "doubled": doubled, "over": over, "miscounted": miscounted, "stored": len(stored),
        "in_chain": chained, "chain_rows": end.seq, "chain": "sound",
    }  # fmt: skip


def is_faultless(report: dict[str, Any]) -> bool:
    """Nothing lost, nothing twice."""
    same = report["stored"] == report["in_chain"] == report["ratings"]
    return same and not any(report[fault] for fault in ("lost", "doubled", "over", "miscounted"))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("ratings", 10_000), ("raters", 50), ("kills", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="an empty folder on the disk to measure; a temporary one")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        report = asyncio.run(measure(folder, given.ratings, given.raters, given.kills, given.seed))
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if is_faultless(report) else 1


if __name__ == "__main__":
    sys.exit(main())
