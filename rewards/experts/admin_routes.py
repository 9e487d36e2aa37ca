"""What the admin's page asks."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool as aside

from rewards.experts.access import Role
from rewards.experts.bodies import Nothing, RaterBody
from rewards.experts.limits import read
from rewards.experts.refusal import Refused
from rewards.experts.service import LARGEST, Door, answer
from rewards.experts.store import Store

_ENDINGS = {"csv": "csv", "jsonl": "jsonl", "argilla": "json", "label-studio": "json"}


def admin_routes(store: Store, door: Door) -> APIRouter:
    """`/api/admin/raters`, `raters/NAME/shut`, `overview`, `export`, `import`."""
    routes = APIRouter(prefix="/api/admin")

    @routes.post("/raters")
    async def invite(request: Request) -> Response:
        _, body = await door.hear(request, Role.ADMIN, RaterBody)
        token = await aside(store.invite, body.name, crisis=body.crisis, days=body.days)
        base = store.config.public_url.rstrip("/") or str(request.base_url).rstrip("/")
        link = f"{base}/{await aside(store.comparisons.page)}#{token}"
        return answer({"rater": body.name, "token": token, "link": link}, 201)

    @routes.post("/raters/{name}/shut")
    async def shut(request: Request, name: str) -> Response:
        await door.hear(request, Role.ADMIN, Nothing)
        await aside(store.shut, name)
        return answer({})

    @routes.get("/overview")
    async def overview(request: Request) -> Response:
        door.admit(request, Role.ADMIN)
        return answer(await aside(store.overview))

    @routes.get("/export")
    async def export(request: Request) -> Response:
        door.admit(request, Role.ADMIN)
        shape = _shape(request)
        headers = {"Content-Disposition": f'attachment; filename="ratings-{shape}.{_ENDINGS[shape]}"'}
        return Response(await aside(store.export, shape), media_type="application/octet-stream", headers=headers)

    @routes.post("/import")
    async def take_in(request: Request) -> Response:
        door.admit(request, Role.ADMIN)
        shape = _shape(request)
        data = await read(request, LARGEST[Role.ADMIN])
        try:
            items, ratings = await aside(store.take_in, shape, data)
        except Refused:
            raise
        except ValueError as error:
            raise Refused(422, str(error)) from error
        return answer({"items": items, "ratings": ratings})

    return routes


def _shape(request: Request) -> str:
    shape = request.query_params.get("as", "")
    if shape not in _ENDINGS:
        raise Refused(422, f"as must be one of {', '.join(_ENDINGS)}, got {ascii(shape)[:40]}")
    return shape
