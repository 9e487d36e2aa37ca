"""One SQLite file, one writer: requests that wait together are committed together, and each is answered after the commit."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rewards.experts.refusal import Refused

Answer = TypeVar("Answer")
Work = Callable[[sqlite3.Connection], Any]

_SCHEMA = Path(__file__).with_name("schema.sql")
_TOGETHER = 128  # works per commit: bounds how long the first of them waits
_PATIENCE_S = 30.0  # for another program that has the file open, such as a backup


class Database:
    """The file at `path`, in WAL mode with synchronous = FULL: what `write` returned is there after a loss of power.

    Thread-safe. Raises ValueError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what clients said is for the service's owner only
            self._writer_db = self._connect()
            self._writer_db.execute("PRAGMA journal_mode = WAL")
            self._writer_db.executescript(_SCHEMA.read_text(encoding="utf-8"))
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"{path} must be the database of a rating service, in a folder that can be written, got {error}: choose "
                "another folder, or restore the file"
            ) from error
        self._writer = threading.Thread(target=self._write_all, name="ratings-writer", daemon=True)
        self._writer.start()

    def write(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """What `work` returns, once it is on disk; what it raises, with nothing of it stored.

        Raises `Refused` (507, 503) where the disk does not take it.
        """
        answer: Future[Answer] = Future()
        with self._closing:
            if self._closed:
                raise Refused(503, "the service is stopping: nothing was stored, try again when it is back", 1.0)
            self._waiting.put((work, answer))
        return answer.result()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees what is committed, and waits for no writer."""
        try:
            db = self._idle.get_nowait()
        except queue.Empty:
            db = self._connect()
            db.execute("PRAGMA query_only = ON")
        try:
            yield db
        finally:
            self._idle.put(db)

    def close(self) -> None:
        """Finish what is waiting, then let go of the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._writer.join()
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._writer_db.close()  # last: it folds the log into the file

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        return db

    def _write_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < _TOGETHER and not self._waiting.empty():
                follows = self._waiting.get()
                if follows is None:
                    self._waiting.put(None)
                    break
                group.append(follows)
            self._write_group(group)

    def _write_group(self, group: list[tuple[Work, Future[Any]]]) -> None:
        """Do the works in one transaction; a work that fails is undone alone, a disk that fails undoes all."""
        db = self._writer_db
        outcomes: list[Callable[[], None]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for work, answer in group:
                outcomes.append(_attempt(db, work, answer))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            refusal = _unstored(error)
            for _, answer in group:
                answer.set_exception(refusal)
            return
        for tell in outcomes:
            tell()


def _attempt(db: sqlite3.Connection, work: Work, answer: Future[Any]) -> Callable[[], None]:
    """Do one work inside a savepoint; what is to be told once the group is on disk."""
    db.execute("SAVEPOINT work")
    try:
        result = work(db)
    except sqlite3.OperationalError:
        raise  # the disk, or a lock: the group's business
    except Exception as error:
        db.execute("ROLLBACK TO work")
        db.execute("RELEASE work")
        failure = error  # handed to the caller's thread, as an executor does
        return lambda: answer.set_exception(failure)
    db.execute("RELEASE work")
    return lambda: answer.set_result(result)


def _unstored(error: sqlite3.Error) -> Refused:
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return Refused(507, "the service's disk is full: nothing was stored; make room there, then send it again", 5.0)
    said = f"{error} ({error.sqlite_errorname})"
    return Refused(503, f"the service cannot write its database, {said}: nothing was stored; send it again", 5.0)
