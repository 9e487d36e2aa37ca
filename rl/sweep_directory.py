"""The directory of a search: one process at a time, one search for ever. No torch, no Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from cluster.settings import SettingsError
from rl.records import LOCK, locked, write_atomically
from rl.sweep_config import Plan

SETTINGS, RECIPE = "sweep.json", "recipe.toml"


@contextmanager
def claimed(plan: Plan) -> Iterator[None]:
    """The sweep's directory, for this process alone, with what the sweep is made of saved, or compared on `--resume`.

    Raises what `locked` does, and SettingsError when it holds a sweep and `--resume` is not given, or another sweep than
    this one.
    """
    directory = plan.directory
    with locked(directory, "sweep directory"):
        made_of = {
            "words": list(plan.words), "sweep": asdict(plan.sweep), "recipe": plan.recipe.read_text(),
            "space": {name: asdict(law) for name, law in plan.space.items()},
        }  # fmt: skip
        text = json.dumps(made_of, indent=1)
        path = directory / SETTINGS
        if plan.resume and not path.exists():
            raise SettingsError(f"--resume must name a sweep that began, {directory} holds none; leave --resume out")
        if not plan.resume and {*os.listdir(directory)} - {LOCK}:
            raise SettingsError(
                f"sweep directory {directory} must be new, holds something; --resume goes on with a sweep, or choose "
                "another --name"
            )
        before = json.loads(path.read_text()) if plan.resume else {}
        if changed := [name for name, value in json.loads(text).items() if before and before[name] != value]:
            raise SettingsError(
                f"sweep {directory} was begun with another {changed[0]} (see {SETTINGS}); --resume with the same, or "
                "choose another --name"
            )
        write_atomically(directory / RECIPE, str(made_of["recipe"]))
        write_atomically(path, text)
        yield
