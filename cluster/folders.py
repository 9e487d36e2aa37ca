"""Folders that one process has for itself, and files for their owner only."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(Exception):
    """Another process has the folder; the message says which, as it named itself."""


@contextmanager
def held(folder: Path, lock: str) -> Iterator[None]:
    """Make the folder and keep it for this process; the file `lock` in it says whose it is, and frees it when the process ends.

    Raises FolderInUse where another process has it, and OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUse(file.read().strip() or "another process") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, that only its owner may read."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)
