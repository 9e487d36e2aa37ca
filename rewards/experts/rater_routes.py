"""What a rater's page asks."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.bodies import DraftBody, Nothing, RatingBody, SettingsBody, SkipBody
from rewards.experts.service import Door, answer
from rewards.experts.store import Store


def rater_routes(store: Store, door: Door) -> APIRouter:
    """`/api/me`, `next`, `draft`, `ratings`, `skip`, `undo`, `settings`, `sitting`."""
    routes = APIRouter(prefix="/api")

    @routes.get("/me")
    async def me(request: Request) -> Response:
        caller = door.admit(request, Role.RATER)
        return answer(await aside(store.me, caller.rater))

    @routes.post("/next")
    async def next_item(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(store.next, caller.rater))

    @routes.put("/draft")
    async def draft(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, DraftBody)
        return answer({"expires_s": await aside(store.draft, caller.rater, body.lease, body.draft)})

    @routes.post("/ratings")
    async def rate(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, RatingBody)
        rating, new, sitting = await aside(store.rate, caller.rater, body.told)
        return answer({"rating": rating, "sitting": sitting}, 201 if new else 200)

    @routes.post("/skip")
    async def skip(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, SkipBody)
        await aside(store.skip, caller.rater, body.lease, body.reason)
        return answer({})

    @routes.post("/undo")
    async def undo(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(store.undo, caller.rater))

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
