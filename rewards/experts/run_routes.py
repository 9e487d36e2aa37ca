"""What the training job asks."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.bodies import CheckpointBody, CloseBody, EventBody, ItemsBody, RewardsBody, UpdateBody, check
from rewards.experts.refusal import Refused
from rewards.experts.service import Door, answer
from rewards.experts.store import Store
from rewards.experts.types import Kind

_LOOK_EVERY_S = 0.2


def run_routes(store: Store, door: Door) -> APIRouter:
    """`/api/run/items`, `rewards`, `close`, `ratings`, `events`."""
    routes = APIRouter(prefix="/api/run")

    @routes.post("/items")
    async def items(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, ItemsBody)
        return answer({"ids": await aside(store.add, [one.item for one in body.items])})

    @routes.post("/rewards")
    async def rewards(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, RewardsBody)
        until = time.monotonic() + body.wait_s
        while await aside(store.missing, body.ids, body.least, body.settle_s) and time.monotonic() < until:
            await asyncio.sleep(min(_LOOK_EVERY_S, max(0.0, until - time.monotonic())))
        ask = partial(store.rewards, every=body.all, settle_s=body.settle_s, fix=body.fix)
        found, absent = await aside(ask, body.run, body.step, body.ids, body.least)
        stuck = await aside(store.stuck, absent, body.least) if absent else {}
        return answer({"rewards": found, "open": absent, "stuck": stuck})

    @routes.post("/close")
    async def close(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, CloseBody)
        body.refuse_halves()
        closed = await aside(store.close_items, body.ids or [], body.run, body.from_step)
        return answer({"closed": closed})

    @routes.get("/ratings")
    async def ratings(request: Request, after: str = "0") -> Response:
        door.admit(request, Role.RUN)
        if not (after.isascii() and after.isdecimal() and len(after) < 16):
            raise Refused(422, f"after must be a row's number, got {ascii(after)[:40]}")
        found, last = await aside(store.ratings, int(after))
        return answer({"ratings": [{**rating.to_dict(), "seq": seq} for seq, rating in found], "seq": last})

    @routes.post("/events")
    async def events(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, EventBody)
        if body.kind == "update":
            check(UpdateBody, body.body)
        if body.kind == "checkpoint":
            check(CheckpointBody, body.body)
        return answer({"seq": await aside(store.event, Kind(body.kind), body.body)})

    return routes
