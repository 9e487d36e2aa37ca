"""The rating service over HTTP: who may ask, what comes back, and nothing but one line where it goes wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewards.experts import pages
from rewards.experts.access import Caller, Role
from rewards.experts.bodies import BodyT, parse
from rewards.experts.config import ServiceConfig
from rewards.experts.limits import Buckets, read
from rewards.experts.refusal import Refused
from rewards.experts.store import Store

_STATIC = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}  # what /static gives, by ending
LARGEST = {Role.RATER: 256 * 1024, Role.RUN: 16 * 1024 * 1024, Role.ADMIN: 16 * 1024 * 1024}  # bytes of a body
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Door:
    """Lets in whoever has the right token and does not ask too often."""

    def __init__(self, store: Store, config: ServiceConfig) -> None:
        self._store = store
        self._tokens = Buckets(config.rate_per_s, config.burst)
        self._strangers = Buckets(config.anonymous_per_s, config.anonymous_burst)

    def admit(self, request: Request, role: Role) -> Caller:
        """Who asks. Raises `Refused`: 401, 403, 429."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if kind.lower() != "bearer" or not token:
                raise Refused(401, "the header Authorization must be 'Bearer TOKEN': open the link that you were given")
            caller = self._store.who(token.strip())
        except Refused:
            self.admit_stranger(request)
            raise
        if caller.role is not Role.RUN:
            self._tokens.take(caller.known_as)
        if caller.role is not role:
            raise Refused(403, f"this needs a token of the role {role.value}, yours is of the role {caller.role.value}")
        return caller

    def admit_stranger(self, request: Request) -> None:
        """Somebody without a token. Raises `Refused` (429)."""
        self._strangers.take(request.client.host if request.client else "")

    async def hear(self, request: Request, role: Role, kind: type[BodyT]) -> tuple[Caller, BodyT]:
        """Who asks, and what for. Raises `Refused`."""
        caller = self.admit(request, role)
        return caller, parse(kind, await read(request, LARGEST[role]))


def answer(content: Any, status: int = 200) -> Response:
    """A JSON answer."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(), status, media_type="application/json")


def create_app(store: Store, config: ServiceConfig) -> FastAPI:
    """The service round `store`."""
    from rewards.experts.admin_routes import admin_routes
    from rewards.experts.comparison_routes import comparison_routes
    from rewards.experts.rater_routes import rater_routes
    from rewards.experts.run_routes import run_routes

    app = FastAPI(title="attune rating", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    door = Door(store, config)
    for routes in (rater_routes, run_routes, admin_routes, comparison_routes):
        app.include_router(routes(store, door))
    _serve_pages(app, door)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Exception, _confess)
    app.add_middleware(_Headers)
    return app


def _serve_pages(app: FastAPI, door: Door) -> None:
    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def give(request: Request) -> Response:
            door.admit_stranger(request)
            return Response(pages.page(name), media_type="text/html")

        return give

    async def static(request: Request, name: str) -> Response:
        door.admit_stranger(request)
        known = {
            file.name: file for file in pages.FOLDER.iterdir() if file.suffix in _STATIC
        }  # a name is looked up, never joined
        if name not in known:
            raise Refused(404, "there is no such page")
        return Response(known[name].read_bytes(), media_type=_STATIC[known[name].suffix])

    app.add_api_route("/", page("index.html"), methods=["GET"])
    app.add_api_route("/compare", page("compare.html"), methods=["GET"])
    app.add_api_route("/admin", page("admin.html"), methods=["GET"])
    app.add_api_route("/static/{name:path}", static, methods=["GET"])


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    response = answer({"error": str(error)}, error.status)
    if error.wait_s:
        response.headers["Retry-After"] = str(math.ceil(error.wait_s))
    if error.status == 413:
        response.headers["Connection"] = "close"  # the rest of the body is not read
    return response


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is no such page", 405: "this page does not take this method"}.get(
        error.status_code, error.detail
    )
    return answer({"error": said}, error.status_code)


async def _confess(request: Request, error: Exception) -> Response:
    return answer({"error": "the service failed at this request: nothing was stored; its log says why"}, 500)


class _Headers:
    """Middleware: every answer carries the security headers, and nothing of the interface is kept by browsers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Cache-Control"] = "no-store" if scope["path"].startswith("/api") else "no-cache"
            await send(message)

        await self._app(scope, receive, send_with_headers)
