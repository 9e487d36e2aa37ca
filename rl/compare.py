"""`attune compare`: people say which of two arms' replies is better, without knowing whose they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.settings import SettingsError, help_text, load
from rewards.experts.config import ServiceConfig

USAGE = """usage: attune compare SUITE_DIR FIRST SECOND [--items N] [--ratings K] [--corpus NAME] [--port P] [...]
       attune compare SUITE_DIR FIRST SECOND --results [--corpus NAME]

Serves SUITE_DIR/human/ until Ctrl-C: invite raters at the address that it prints; each sees two replies to one conversation, as A
and B. The same command goes on where it was. On exit, and with --results at once, SUITE_DIR/human.json is written.
"""


@dataclass(frozen=True)
class CompareConfig:
    """What is asked of whom."""

    items: int = 60
    """Prompts at most, drawn by `seed` among those that both arms answered."""
    ratings: int = 2
    """Raters of each item: with two or more their agreement is known."""
    corpus: str = ""
    """Where the suite has several."""
    seed: int = 0
    """Of the prompts and of the sides."""
    draws: int = 2000
    """Bootstrap resamples."""
    port: int = 0
    """Short for service.port: 0 takes what that says."""
    service: ServiceConfig = field(default_factory=ServiceConfig)
    """Of the rating service; `overlap` and `aggregation` are of ratings alone."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("items", 1, 100_000),
            ("ratings", 1, 100),
            ("draws", 100, 1_000_000),
            ("seed", 0, 2**53),
        ):
            value = vars(self)[name]
            if not least <= value <= most:
                raise ValueError(f"{name} must be in {least}..{most}, is {value}: correct it")

    @property
    def served(self) -> ServiceConfig:
        """The service's settings."""
        return replace(self.service, port=self.port) if self.port else self.service


def compare(words: Sequence[str]) -> None:
    """The command. Raises ValueError for an arm or corpus that is not there, replies that have no prompt in common or never
    differ, a folder in use, and results of nobody."""
    if {"-h", "--help"} & set(words):
        print(f"{USAGE}\n{help_text(CompareConfig, 'attune compare SUITE_DIR FIRST SECOND')}")
        return
    named = list(words[:3])
    if len(named) < 3 or any(word.startswith("--") for word in named):
        raise SettingsError(f"attune compare needs SUITE_DIR FIRST SECOND, got {' '.join(named) or 'nothing'!r}")
    directory, first, second = Path(named[0]), named[1], named[2]
    config = load(CompareConfig, argv=[word for word in words[3:] if word != "--results"])
    if "--results" in words:
        print(_write_results(directory, first, second, config))
        return
    from eval.side_by_side import NobodyJudged

    _serve(directory, first, second, config)
    try:
        print(_write_results(directory, first, second, config))
    except NobodyJudged:
        print("nobody has judged yet; the same command goes on")


def _serve(directory: Path, first: str, second: str, config: CompareConfig) -> None:
    from eval.side_by_side import FOLDER, paired
    from rewards.experts.serve import run
    from rewards.experts.store import Store

    pairs = paired(directory, first, second, config.corpus)
    chosen = pairs.chosen(config.items, wanted=config.ratings, seed=config.seed)
    same = sum(one.scrubbed().same for one in chosen)
    if same == len(chosen):
        raise ValueError(
            f"{first} and {second} must differ somewhere, their replies to all {same} prompts read the same: there is nothing "
            "to ask"
        )
    folder = directory / FOLDER

    def started(store: Store, url: str) -> None:
        store.comparisons.close_others(store.comparisons.add(chosen))
        told = store.comparisons.counts()
        print(
            f"{len(chosen)} items of {pairs.corpus}, {first} against {second}: {len(chosen) - same} are asked, {config.ratings} "
            f"raters each; {same} have one text twice\n{told['judgements']} judgements are there, {told['done']} items are done\n"
            f"invite raters at {_admin_link(folder, store, url)}\nCtrl-C ends it and writes the results",
            flush=True,
        )

    with suppress(KeyboardInterrupt):  # how it is stopped; what was acknowledged is on the disk
        run(folder, config.served, started)


def _admin_link(folder: Path, store: Any, url: str) -> str:
    """The admin's link: that of before where it is still good."""
    from rewards.experts.access import Role
    from rewards.experts.refusal import Refused
    from rewards.experts.session import ADMIN_LINK, write_admin_link

    path = folder / ADMIN_LINK
    token = path.read_text().strip().rpartition("#")[2] if path.exists() else ""
    try:
        store.who(token)
    except Refused:
        token = store.issue(Role.ADMIN)
    link = f"{url}/admin#{token}"
    write_admin_link(folder, link)
    return link


def _write_results(directory: Path, first: str, second: str, config: CompareConfig) -> str:
    """Write this pair's results into human.json, beside those of other pairs; what they say in a line."""
    from eval.side_by_side import RESULTS, results
    from rl.records import write_atomically

    told = results(directory, first, second, corpus=config.corpus, draws=config.draws, seed=config.seed)
    path = directory / RESULTS
    of = {"arms": {first, second}, "corpus": told["corpus"]}
    others = [
        pair
        for pair in (json.loads(path.read_text()) if path.is_file() else [])
        if {"arms": {pair["first"], pair["second"]}, "corpus": pair["corpus"]} != of
    ]
    write_atomically(path, json.dumps([*others, told], indent=1, ensure_ascii=False) + "\n")
    rate = told["win_rate"]
    return "\n".join(
        [
            f"{first} wins {told['first_wins']}, {second} wins {told['second_wins']}, {told['ties']} ties "
            f"({told['same_text']} of one text); win rate of {first} {rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], "
            f"p = {told['p']:.3g}; {told['judgements']} judgements by {told['raters']} raters",
            *told["notes"],
            f"results: {directory / RESULTS}",
        ]
    )
