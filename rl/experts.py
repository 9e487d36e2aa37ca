"""`attune rate` and `attune audit`: the rating service of a run, and what its audit chain says."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eval.side_by_side import FOLDER as COMPARED
from rewards.experts import audit, ledger
from rewards.experts.config import FOLDER
from rewards.experts.session import ADMIN_LINK, write_admin_link
from rewards.experts.store import DATABASE, Store
from rewards.experts.types import Kind
from rl.checkpoints import MANIFEST, read_checkpoint
from rl.config import PpoRecipe


def rate(recipe: PpoRecipe) -> None:
    """Serve the ratings of the recipe's run until interrupted: before, beside or after training.

    Raises ValueError where the folder is in use (a run serves its own) or the address cannot be had.
    """
    from rewards.experts.access import Role
    from rewards.experts.serve import run

    folder = recipe.directory / FOLDER

    def started(store: Store, url: str) -> None:
        link = folder / ADMIN_LINK
        if not link.exists():
            write_admin_link(folder, f"{url}/admin#{store.issue(Role.ADMIN)}")
        print(
            f"rating service on {folder}: {url}\ninvite raters at the address in {link} (remove it for a new one)",
            flush=True,
        )

    with suppress(KeyboardInterrupt):  # how it is stopped; what was acknowledged is on the disk
        run(folder, recipe.rewards.experts.service, started)
    print("rating service stopped; the same command goes on")


def describe_audit(run: Path, step: int | None) -> str:
    """Whether the audit chain of a run directory is sound, and which ratings moved its checkpoint after `step` steps (of
    every checkpoint in short, where none is named).

    Raises ValueError naming the first row that was changed, a checkpoint that is not what the chain saw, or one that it
    does not know.
    """
    folder = next((run / name for name in (FOLDER, COMPARED) if (run / name / DATABASE).is_file()), None)
    if folder is None:
        raise ValueError(
            f"audit: {run} must have asked people, holds neither {FOLDER}/{DATABASE} nor {COMPARED}/{DATABASE}: there is no "
            "chain to check"
        )
    with ledger.opened(folder / DATABASE) as db:
        end = ledger.check(db)
        rows = list(audit.rows(db))
    counts = Counter(row.kind for row in rows)
    lines = [
        f"audit chain of {run}: sound, {end.seq} rows, last hash {end.hash}",
        "  " + ", ".join(f"{counts[kind]} of {kind}" for kind in Kind if counts[kind]),
    ]
    saved = [row.content for row in rows if row.kind == Kind.CHECKPOINT]
    named = [body for body in saved if step is None or body["step"] == step]
    if step is not None and not named:
        known = ", ".join(str(body["step"]) for body in saved) or "none"
        raise ValueError(
            f"audit: the chain must know the checkpoint after {step} steps, knows {known}; name one of them"
        )
    latest = {(body["run"], body["step"]): body for body in named}
    for (name, after), body in latest.items():
        lines += _checkpoint(run, audit.trace(rows, name, after), after, str(body["manifest"]), every=step is not None)
    return "\n".join(lines)


def _checkpoint(run: Path, trace: audit.Trace, after: int, manifest: str, *, every: bool) -> list[str]:
    folder = run / "checkpoints" / f"step-{after:06d}"
    if (folder / MANIFEST).is_file():
        there = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        if there != manifest:
            raise ValueError(
                f"audit: {folder / MANIFEST} must have the sha256 {manifest} that the chain saw, has {there}: it is not the "
                "checkpoint that these ratings moved"
            )
        read_checkpoint(folder)  # every file, by its hash
        state = "is there, as it was saved"
    else:
        state = "was removed since"
    raters = Counter(row.content["rater"] for row in trace.ratings.values())
    lines = [
        f"checkpoint after {after} steps ({state}): {len(trace.updates)} updates with {len(trace.rewards)} rewards of "
        f"{len(trace.ratings)} ratings by {len(raters)} raters"
        + (f", {len(trace.surrogates)} fits of a surrogate" if trace.surrogates else "")
        + (f"; {len(trace.unfixed)} replies were scored by the surrogate first" if trace.unfixed else "")
    ]
    if every:
        for row in trace.ratings.values():
            told = row.content
            flags = f", flags {', '.join(told['flags'])}" if told["flags"] else ""
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
            lines.append(
                f"  row {row.seq}, {when}: {told['rater']} gave {told['overall']:.2f} to item {told['item']}{flags}"
            )
    return lines


def audit_words(words: Sequence[str]) -> tuple[Path, int | None]:
    """The run directory and the step of `attune audit RUN [STEP]`."""
    folder = Path(words[0]) if words else Path()
    if len(words) not in (1, 2):
        raise ValueError(
            f"attune audit takes a run directory and may take a step, got {len(words)} words: attune audit RUN [STEP]"
        )
    if not folder.is_dir():
        raise ValueError(f"attune audit needs a run directory, {folder} is no folder: name one such as runs/NAME")
    if len(words) == 1:
        return folder, None
    digits = words[1].removeprefix("step-")
    if not digits.isdecimal():
        raise ValueError(f"attune audit takes a step such as 50 or step-000050, got {words[1]!r}")
    return folder, int(digits)
