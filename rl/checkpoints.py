"""Checkpoints of a run: written aside and renamed when whole, with hashes; the newest sound one is where a run resumes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

_FULL_DISK_BYTES = 16_000_000
MANIFEST, STATE = "manifest.json", "state.json"


class Stateful(Protocol):
    """Something with a small JSON state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SavesLearner(Protocol):
    """The learner, as checkpoints see it."""

    def save(self, folder: Path) -> dict[str, Any]: ...

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None: ...


class DamagedCheckpoint(ValueError):
    """A checkpoint's files are not those of its manifest."""


class UnwrittenCheckpoint(OSError):
    """A checkpoint could not be written; what was there before is as it was."""


class Checkpoints:
    """`DIRECTORY/step-000050/`: the run after 50 steps. Keeps the newest `keep` and the best.

    `state.json` holds the learner's counters and the state of every other part of the run by its name (the prompt stream,
    the reward's statistics), `learner/` weights and optimizer, `policy/` a model that transformers and vLLM load,
    `manifest.json` the sha256 of each file.
    """

    def __init__(self, directory: Path, *, keep: int, every: int = 1, steps: int = 0) -> None:
        self._directory, self._every, self._keep, self._steps = directory, every, keep, steps
        self._scores: list[float] = []

    def due(self, step: int) -> bool:
        """Whether the run saves after this step (counted from 0): every `every` steps, and at the end."""
        return (step + 1) % self._every == 0 or step + 1 == self._steps

    def note(self, score: float) -> None:
        """What "best" is judged by (a step's mean reward, a validation's negative loss), averaged since the last checkpoint."""
        self._scores.append(score)

    def save(self, step: int, learner: SavesLearner, **parts: Stateful) -> Path:
        """Save the run after `step`. All or nothing: a full disk or a kill leaves the checkpoints that were there."""
        final = self._directory / f"step-{step + 1:06d}"
        partial = self._directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            state = {
                "step": step + 1,
                "score": sum(self._scores) / max(len(self._scores), 1),
                "learner": learner.save(partial.resolve()),
                **{name: part.state_dict() for name, part in parts.items()},
            }
            (partial / STATE).write_text(json.dumps(state, indent=1))
            files = sorted(p for p in partial.rglob("*") if p.is_file())
            hashes = {str(p.relative_to(partial)): _sha256(p) for p in files}
            (partial / MANIFEST).write_text(json.dumps(hashes, indent=1))
            for path in (*files, partial / MANIFEST):
                _sync(path)
        except BaseException as error:
            free = shutil.disk_usage(partial).free
            shutil.rmtree(partial, ignore_errors=True)
            cause = vars(error).get("cause", error)  # of an error that came from an actor
            full = free < _FULL_DISK_BYTES  # torch and safetensors have errors of their own for it
            code = cause.errno if isinstance(cause, OSError) else errno.ENOSPC if full else None
            if code is None:
                raise
            raise UnwrittenCheckpoint(
                code,
                f"checkpoint {final} could not be written ({' '.join(str(cause).split())}; {free / 1e6:.0f} MB were free); "
                "earlier ones stay: make room, and the same command resumes",
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(self._directory)
        self._scores = []
        self._prune()
        return final

    def restore(self, learner: SavesLearner, **parts: Stateful) -> int:
        """Bring everything to the newest sound checkpoint; the next step's number, 0 when there is none.

        A damaged checkpoint is said, and the one before is used.
        """
        for remains in self._directory.glob(".step-*.partial"):  # of a save that was killed
            shutil.rmtree(remains)
        damaged = any(self._directory.glob(".damaged-step-*")) and not self.folders()
        for folder in reversed(self.folders()):
            try:
                state = read_checkpoint(folder)
            except DamagedCheckpoint as error:
                log.warning("%s; kept aside as .damaged-%s, trying the one before", error, folder.name)
                os.replace(folder, folder.with_name(f".damaged-{folder.name}"))
                damaged = True
                continue
            learner.restore(folder.resolve(), state["learner"])
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self._prune()  # a kill right after the last save may have left the link at an older one
            return int(state["step"])
        if damaged:
            raise DamagedCheckpoint(
                f"none of the checkpoints in {self._directory} is sound; starting again would write over the run: choose "
                f"another --name, or remove {self._directory.parent}"
            )
        return 0

    def folders(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self._directory.glob("step-*"))

    def best(self) -> Path | None:
        """The checkpoint with the highest score since the one before it."""
        scored = [(json.loads((f / STATE).read_text())["score"], f) for f in self.folders() if _readable(f)]
        finite = [pair for pair in scored if math.isfinite(pair[0])]
        return max(finite, default=(0.0, None), key=lambda pair: pair[0])[1]

    def _prune(self) -> None:
        best = self.best()
        for folder in self.folders()[: -self._keep]:
            if folder != best:
                shutil.rmtree(folder)
        if best is not None:
            link = self._directory / ".best.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(best.name)
            os.replace(link, self._directory / "best")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as written. Raises DamagedCheckpoint, naming the file."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:  # no JSON, or no text at all
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {MANIFEST} cannot be read") from error
    for name, digest in hashes.items():
        if not (folder / name).is_file():
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} is missing")
        if _sha256(folder / name) != digest:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} is not the file that was saved")
    return json.loads((folder / STATE).read_text())


def _readable(folder: Path) -> bool:
    try:
        return "score" in json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
