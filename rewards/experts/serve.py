"""Runs the rating service on one folder: `python -m rewards.experts.serve --folder DIR`.

The folder holds `ratings.sqlite`, `service.json` (address, port and the training job's token, for its owner only) and a lock.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cluster.folders import FolderInUse, held, write_private
from rewards.experts.access import Role
from rewards.experts.config import ServiceConfig
from rewards.experts.reward_rules import RULES
from rewards.experts.store import Store

SERVICE = "service.json"
_LOCK = "service.lock"
_READY = "rating service"  # what the line with the address begins with
_STOP_S = 15.0  # for a graceful end
Started = Callable[[Store, str], None]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder, for this process. Raises ValueError where another service has it, or it cannot be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder, _LOCK))
        except FolderInUse as error:
            raise ValueError(
                f"the rating service's folder {folder} must be free, is in use by {error}: stop that one, or choose another folder"
            ) from None
        except OSError as error:
            raise ValueError(
                f"the rating service's folder {folder} must be one to write in, is none ({error.strerror}): choose another"
            ) from error
        yield


def bind(config: ServiceConfig, before: int = 0) -> socket.socket:
    """A socket that listens as `config` says; with port 0 at port `before`, so that links stay good, where that is free.

    Raises ValueError for a port that is taken and an address that is not this machine's.
    """
    wished = [config.port] if config.port else [before, 0]
    for place, port in enumerate(wished):
        try:
            return _listen(config.host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and place + 1 < len(wished):
                continue
            taken = error.errno == errno.EADDRINUSE
            knob, remedy = ("port", "stop the program that has it, or use 0") if taken else ("host", "use 127.0.0.1")
            raise ValueError(
                f"rewards.experts.service.{knob} must be one to listen at, {config.host}:{port} is not ({error.strerror}): {remedy}"
            ) from error
    raise AssertionError("port 0 is never taken")


def run(folder: Path, config: ServiceConfig, started: Started, *, until_eof: int | None = None) -> None:
    """Serve in this process until SIGINT or SIGTERM, or until the file descriptor `until_eof` ends; `started` is told the
    store and the address once requests are taken. Raises ValueError for a folder in use and an address that is taken."""
    import uvicorn

    from rewards.experts.service import create_app

    with alone(folder):
        known = read_service(folder)
        port_before = known.get("port", 0)
        with (
            bind(config, port_before if isinstance(port_before, int) else 0) as sock,
            Store(folder, config, RULES[config.aggregation]) as store,
        ):
            url = f"http://{_in_url(config.host)}:{sock.getsockname()[1]}"
            _tell(folder, store, known, url, sock.getsockname()[1])
            settings = uvicorn.Config(
                create_app(store, config), access_log=False, log_level="warning", server_header=False, lifespan="off",
                timeout_graceful_shutdown=5, timeout_keep_alive=65, ws="none", proxy_headers=bool(config.public_url),
            )  # fmt: skip
            server = uvicorn.Server(settings)

            def stop(*_: object) -> None:
                server.should_exit = True

            if until_eof is not None:
                threading.Thread(target=_call_after, args=(until_eof, stop), daemon=True).start()
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, stop)  # uvicorn raises again what it caught: the store is still to be closed
            started(store, config.public_url.rstrip("/") or url)
            server.run(sockets=[sock])


def read_service(folder: Path) -> dict[str, object]:
    """What `service.json` says: url, port, token; nothing where there is none."""
    try:
        return dict(json.loads((folder / SERVICE).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _tell(folder: Path, store: Store, known: dict[str, object], url: str, port: int) -> None:
    token = known.get("token")
    if not isinstance(token, str) or not store.has(Role.RUN):
        token = store.issue(Role.RUN)
    told = {"url": url, "port": port, "token": token, "process": os.getpid()}
    write_private(folder / SERVICE, json.dumps(told))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(512)
    except OSError:
        sock.close()
        raise
    return sock


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class Server:
    """The service of a folder in a process of its own: `with Server(folder, config) as server: server.url, server.token`.

    It ends with the block, or when this process does. `admin_link` is there on a new folder, or where a new one was asked
    for. Raises ValueError, in the service's own words, where it does not start.
    """

    def __init__(self, folder: Path, config: ServiceConfig | None = None, *, new_admin_link: bool = False) -> None:
        self.folder, self.config = folder, config or ServiceConfig()
        self._options = ["--until-eof", *(["--admin-link"] if new_admin_link else [])]
        self.url = self.token = self.admin_link = ""

    def start(self) -> Self:
        """Returns once requests are answered."""
        knobs = [f"--{field.name.replace('_', '-')}={vars(self.config)[field.name]}" for field in fields(ServiceConfig)]
        words = [
            sys.executable,
            "-m",
            "rewards.experts.serve",
            "--folder",
            str(self.folder.resolve()),
            *self._options,
            *knobs,
        ]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            name, _, value = line.strip().partition(": ")
            if name == "admin":
                self.admin_link = value
            if name == _READY:
                break
        else:
            said = self.process.stderr.read().strip().splitlines()
            raise ValueError(said[-1] if said else f"the rating service on {self.folder} ended as it started")
        threading.Thread(target=_pass_on, args=(self.process.stderr,), daemon=True).start()
        told = read_service(self.folder)
        self.url, self.token = str(told["url"]), str(told["token"])
        return self

    def stop(self) -> None:
        """Answer what is being asked, then end."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _call_after(ending: int, stop: Callable[[], None]) -> None:
    while os.read(ending, 1024):  # past the buffer of sys.stdin, whose lock would be held when the process ends
        pass
    stop()


def _pass_on(lines: IO[str]) -> None:
    for line in lines:
        sys.stderr.write(line)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.experts.serve", description="The rating service of a folder."
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--admin-link", action="store_true", help="print a new admin link; the old one is void")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    for knob in fields(ServiceConfig):
        parser.add_argument(f"--{knob.name.replace('_', '-')}", type=type(knob.default), default=knob.default)
    given = vars(parser.parse_args(argv))
    folder, admin_link, until_eof = (given.pop(name) for name in ("folder", "admin_link", "until_eof"))

    def started(store: Store, url: str) -> None:
        if not store.config.loopback and not store.config.public_url.startswith("https://"):
            print(f"{url} can be reached from other machines without TLS: put a proxy in front", file=sys.stderr)
        if admin_link or not store.has(Role.ADMIN):
            print(f"admin: {url}/admin#{store.issue(Role.ADMIN)}", flush=True)
        print(f"{_READY}: {url}", flush=True)

    try:
        run(folder, ServiceConfig(**given), started, until_eof=sys.stdin.fileno() if until_eof else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
