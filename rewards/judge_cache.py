"""A judge's answers, kept in one SQLite file that several reward actors write at a time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

_PATIENCE_S = 60.0  # how long one actor waits for another's write


def cache_key(url: str, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of all that an answer depends on."""
    asked = json.dumps([url, model, messages, parameters], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class JudgeCache:
    """Answers by key. The first answer to a question stands.

    The file is in WAL mode: readers do not wait, writers take turns, and what `keep` returned is there after the
    process that wrote it was killed. WAL needs shared memory, so the file must lie on a local disk, not on a network
    share: one file per node. Raises ValueError where it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        try:
            self._db = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise ValueError(
                f"rewards.judge.cache must be an SQLite file in a folder that exists and can be written, got {path!r} "
                f'({error}): create the folder, take another name, or "" for none'
            ) from error

    def find(self, key: str) -> str | None:
        """The answer that is kept under `key`."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep(self, key: str, answer: str) -> str:
        """Keep `answer` unless there is one; the answer that stands."""
        self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, answer))
        stands = self.find(key)
        assert stands is not None
        return stands

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
