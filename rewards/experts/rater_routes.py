"""What the raters' pages ask."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.bodies import DraftBody, Nothing, RatingBody, SettingsBody, SkipBody
from rewards.experts.service import Door, answer
from rewards.experts.store import Store


class TakesTurns(Protocol):
    """What is asked of the store, whatever it is that raters take turns at."""

    def me(self, rater: str) -> dict[str, Any]: ...
    def next(self, rater: str) -> dict[str, Any]: ...
    def skip(self, rater: str, lease: str, reason: str) -> None: ...
    def undo(self, rater: str) -> dict[str, Any]: ...


def add_turns(routes: APIRouter, under: str, turns: TakesTurns, door: Door) -> None:
    """`me`, `next`, `skip` and `undo`, under a path."""

    @routes.get(f"{under}/me")
    async def me(request: Request) -> Response:
        caller = door.admit(request, Role.RATER)
        return answer(await aside(turns.me, caller.rater))

    @routes.post(f"{under}/next")
    async def next_one(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(turns.next, caller.rater))

    @routes.post(f"{under}/skip")
    async def skip(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, SkipBody)
        await aside(turns.skip, caller.rater, body.lease, body.reason)
        return answer({})

    @routes.post(f"{under}/undo")
    async def undo(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(turns.undo, caller.rater))


def rater_routes(store: Store, door: Door) -> APIRouter:
    """`/api/me`, `next`, `draft`, `ratings`, `skip`, `undo`, `settings`, `sitting`."""
    routes = APIRouter(prefix="/api")
    add_turns(routes, "", store, door)

    @routes.put("/draft")
    async def draft(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, DraftBody)
        return answer({"expires_s": await aside(store.draft, caller.rater, body.lease, body.draft)})

    @routes.post("/ratings")
    async def rate(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, RatingBody)
        rating, new, sitting = await aside(store.rate, caller.rater, body.told)
        return answer({"rating": rating, "sitting": sitting}, 201 if new else 200)

    @routes.post("/settings")
    async def settings(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, SettingsBody)
        await aside(store.settle, caller.rater, crisis=body.crisis)
        return answer({})

    @routes.post("/sitting")
    async def sitting(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer({"sitting": await aside(store.sit, caller.rater)})

    return routes
