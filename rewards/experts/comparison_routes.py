"""What the comparing page, whoever asks for comparisons, and the admin's page ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.bodies import Nothing, SkipBody
from rewards.experts.comparison_bodies import ComparisonsBody, JudgementBody, LeaseBody
from rewards.experts.service import Door, answer
from rewards.experts.store import Store


def comparison_routes(store: Store, door: Door) -> APIRouter:
    """`/api/compare/me`, `next`, `renew`, `judgements`, `skip`, `undo`; `/api/run/comparisons`; `/api/admin/comparisons`.

    A rater's settings and sittings are those of `rater_routes`.
    """
    routes, comparisons = APIRouter(prefix="/api"), store.comparisons

    @routes.get("/compare/me")
    async def me(request: Request) -> Response:
        caller = door.admit(request, Role.RATER)
        return answer(await aside(comparisons.me, caller.rater))

    @routes.post("/compare/next")
    async def next_comparison(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(comparisons.next, caller.rater))

    @routes.post("/compare/renew")
    async def renew(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, LeaseBody)
        return answer({"expires_s": await aside(comparisons.renew, caller.rater, body.lease)})

    @routes.post("/compare/judgements")
    async def judge(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, JudgementBody)
        judgement, new, sitting = await aside(comparisons.judge, caller.rater, body.told)
        return answer({"judgement": judgement, "sitting": sitting}, 201 if new else 200)

    @routes.post("/compare/skip")
    async def skip(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, SkipBody)
        await aside(comparisons.skip, caller.rater, body.lease, body.reason)
        return answer({})

    @routes.post("/compare/undo")
    async def undo(request: Request) -> Response:
        caller, _ = await door.hear(request, Role.RATER, Nothing)
        return answer(await aside(comparisons.undo, caller.rater))

    @routes.post("/run/comparisons")
    async def add(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, ComparisonsBody)
        return answer({"ids": await aside(comparisons.add, [one.comparison for one in body.comparisons])})

    @routes.get("/admin/comparisons")
    async def counts(request: Request) -> Response:
        door.admit(request, Role.ADMIN)
        return answer(await aside(comparisons.counts))

    return routes
