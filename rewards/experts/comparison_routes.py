"""What the comparing page, whoever asks for comparisons, and the admin's page ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.comparison_bodies import ComparisonsBody, JudgementBody, LeaseBody
from rewards.experts.rater_routes import add_turns
from rewards.experts.service import Door, answer
from rewards.experts.store import Store


def comparison_routes(store: Store, door: Door) -> APIRouter:
    """`/api/compare/me`, `next`, `renew`, `judgements`, `skip`, `undo`; `/api/run/comparisons`; `/api/admin/comparisons`.

    A rater's settings and sittings are those of `rater_routes`.
    """
    routes, comparisons = APIRouter(prefix="/api"), store.comparisons
    add_turns(routes, "/compare", comparisons, door)

    @routes.post("/compare/renew")
    async def renew(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, LeaseBody)
        return answer({"expires_s": await aside(comparisons.renew, caller.rater, body.lease)})

    @routes.post("/compare/judgements")
    async def judge(request: Request) -> Response:
        caller, body = await door.hear(request, Role.RATER, JudgementBody)
        judgement, new, sitting = await aside(comparisons.judge, caller.rater, body.told)
        return answer({"judgement": judgement, "sitting": sitting}, 201 if new else 200)

    @routes.post("/run/comparisons")
    async def add(request: Request) -> Response:
        _, body = await door.hear(request, Role.RUN, ComparisonsBody)
        return answer({"ids": await aside(comparisons.add, [one.comparison for one in body.comparisons])})

    @routes.get("/admin/comparisons")
    async def counts(request: Request) -> Response:
        door.admit(request, Role.ADMIN)
        return answer(await aside(comparisons.counts))

    return routes
