"""A real HTTP server on this machine that answers JSON with a function of the request, after the faults it was given."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Fault = Callable[["_Handler"], None]


def status(code: int, said: str = "not now", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with `code`."""
    return lambda handler: handler.reply(code, said.encode(), {"Content-Type": "text/plain", **(headers or {})})


def body(content: bytes, kind: str = "application/json") -> Fault:
    """Answer 200 with exactly `content`."""
    return lambda handler: handler.reply(200, content, {"Content-Type": kind})


def drop(handler: _Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def hang(handler: _Handler) -> None:
    """Say nothing until the server ends."""
    handler.server.ended.wait()
    handler.close_connection = True


class FaultyServer(ThreadingHTTPServer):
    """The first requests meet `faults`, one each; later ones are answered by `answer`.

    Requests are kept back until `hold` are there at a time (or five seconds have passed), so that `most_in_flight` is
    what the client lets happen and not what the machine's speed does. `heard` are the requests' bodies, `heard_at_s` when
    they came.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Any], Any], faults: Sequence[Fault] = (), hold: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.hold = answer, hold
        self.faults = list(faults)
        self.heard: list[Any] = []
        self.heard_at_s: list[float] = []
        self.keys: set[str | None] = set()
        self.ended = threading.Event()
        self.in_flight = self.most_in_flight = 0
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.changed:
            server.heard.append(request)
            server.heard_at_s.append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            server.changed.notify_all()
            fault = server.faults.pop(0) if server.faults else None
            server.changed.wait_for(lambda: server.most_in_flight >= server.hold, timeout=5)
            if len(server.heard) <= server.hold > 1:  # the first wave gives one too many the time to come
                server.changed.wait_for(lambda: server.most_in_flight > server.hold, timeout=0.3)
        if fault:
            fault(self)
        else:
            self.reply(200, json.dumps(server.answer(request)).encode(), {"Content-Type": "application/json"})

    def reply(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        with self.server.changed:
            self.server.in_flight -= 1
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass
