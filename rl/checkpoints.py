"""Checkpoints of a run: written aside and renamed when whole, with hashes; the newest sound one is where a run resumes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rewards.guard_file import GuardSettings

log = logging.getLogger(__name__)

_FULL_DISK_BYTES = 16_000_000
_ROUNDING = 1e-9  # of a mean of rates; one reply in a million would be a thousand times as much
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


class Standing(NamedTuple):
    """How the run did since the checkpoint before: mean score, and the mean rate of each red flag, in [0, 1]."""

    score: float
    red_flags: Mapping[str, float]

    def rose(self, best: Standing) -> list[str]:
        """The red flags whose rate is above that of `best`; a flag that one of the two does not name has rate 0 there."""
        return sorted(n for n, rate in self.red_flags.items() if rate > best.red_flags.get(n, 0.0) + _ROUNDING)


class Checkpoints:
    """`DIRECTORY/step-000050/`: the run after 50 steps. Keeps the newest `keep` and the best.

    `state.json` holds the learner's counters and the state of every other part of the run by its name (the prompt stream,
    the reward's statistics), `learner/` weights and optimizer, `policy/` a model that transformers and vLLM load and the
    `guard.json` of its deployment, `manifest.json` the sha256 of each file.

    The best: the run's first checkpoint, until a later one has a higher score and no red flag's rate above the best's.
    Any rise refuses the name, sampling noise or not: whoever wants to call such a checkpoint better must look at its
    replies. Rates therefore never rise from one best to the next. What a checkpoint was when it was saved stands in its
    `state.json`, so that neither pruning nor a restart changes who is best. Where the best is lost (damaged), the one
    before it is, while it is kept, else the next that is saved. Against a checkpoint of a version that kept no rates the
    score alone decides.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        every: int = 1,
        steps: int = 0,
        guard: GuardSettings | None = None,
        saved: Callable[[int, str], None] = lambda step, manifest: None,
    ) -> None:
        """`saved` is told the step (counted from 0) and the sha256 of the manifest of each checkpoint that was written, and of
        the one that a run goes on from."""
        self._directory, self._every, self._keep, self._steps = directory, every, keep, steps
        self._guard, self._saved = guard, saved
        self._noted: list[Standing] = []

    def due(self, step: int) -> bool:
        """Whether the run saves after this step (counted from 0): every `every` steps, and at the end."""
        return (step + 1) % self._every == 0 or step + 1 == self._steps

    def note(self, score: float, red_flags: Mapping[str, float] | None = None) -> None:
        """What "best" is judged by (a step's mean reward, a validation's negative loss; the share of replies with each red
        flag), averaged since the last checkpoint."""
        self._noted.append(Standing(score, red_flags or {}))

    def save(self, step: int, learner: SavesLearner, **parts: Stateful) -> Path:
        """Save the run after `step`. All or nothing: a full disk or a kill leaves the checkpoints that were there."""
        final = self._directory / f"step-{step + 1:06d}"
        partial = self._directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            standing = _mean(self._noted)
            state = {
                "step": step + 1,
                **standing._asdict(),
                "best": self._is_best(final, standing),
                "learner": learner.save(partial.resolve()),
                **{name: part.state_dict() for name, part in parts.items()},
            }
            if self._guard is not None:
                self._guard.write(partial / "policy")
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
        self._noted = []
        self._prune()
        self._saved(step, _sha256(final / MANIFEST))
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
            self._saved(int(state["step"]) - 1, _sha256(folder / MANIFEST))  # a kill may have come before it was told
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
        """The best checkpoint that is there; None when there is none with a finite score."""
        return self._best(self.folders())

    def _best(self, folders: Sequence[Path]) -> Path | None:
        states = {folder: state for folder in folders if (state := _readable(folder)) is not None}
        crowned = [folder for folder, state in states.items() if state.get("best", False)]
        if crowned:
            return crowned[-1]
        finite = [f for f, state in states.items() if "best" not in state and math.isfinite(state["score"])]
        return max(finite, default=None, key=lambda f: states[f]["score"])  # of a run that kept no such word

    def _is_best(self, folder: Path, standing: Standing) -> bool:
        best = self._best([f for f in self.folders() if f != folder])
        if best is None or not math.isfinite(standing.score):
            return math.isfinite(standing.score)
        state = _readable(best) or {}
        held = Standing(state["score"], state.get("red_flags", standing.red_flags))
        if standing.score <= held.score:
            return False
        rose = [f"{n} {held.red_flags.get(n, 0.0):.4f} -> {standing.red_flags[n]:.4f}" for n in standing.rose(held)]
        if rose:
            log.warning(
                "%s scores %.4f, above the %.4f of %s, and is not called best: red flags rose (%s)",
                folder.name, standing.score, held.score, best.name, ", ".join(rose),
            )  # fmt: skip
        return not rose

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


def _mean(noted: Sequence[Standing]) -> Standing:
    count = max(len(noted), 1)
    names = dict.fromkeys(name for standing in noted for name in standing.red_flags)
    rates = {name: math.fsum(standing.red_flags.get(name, 0.0) for standing in noted) / count for name in names}
    scores = [
        standing.score for standing in noted if math.isfinite(standing.score)
    ]  # a step of dropped replies has none
    return Standing(sum(scores) / len(scores) if scores else math.nan if noted else 0.0, rates)


def _readable(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return None
    return state if "score" in state else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
