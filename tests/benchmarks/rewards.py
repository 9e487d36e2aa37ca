"""Speed of the reward actors with every term that works offline; README.md beside this file says how to read it."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import ray

from cluster.placement import Claim, Placement, connect
from rewards.config import RewardsConfig
from rewards.fleet import FLEET, RewardFleet
from rewards.panel import TERMS, Panel, ask
from rewards.workbench import Workbench
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.types import Finish, Prompt, Rollout, Speaker, VersionSpan
from tests.reward_replies import ELSEWHERE

SAMPLES = 4  # replies per prompt, as in the local recipe


def offline(actors: int) -> RewardsConfig:
    """Every offline term with a weight, in `actors` actors of a quarter of a core's claim each."""
    config = RewardsConfig(cpus=0.25)
    terms = {name: replace(section, weight=1.0) for name, section in config.terms.items() if name not in ELSEWHERE}
    config = replace(config, **terms)  # type: ignore[arg-type]
    alone = copy.copy(config)
    object.__setattr__(alone, "actors", actors)  # a run has two at least; here one shows what two bring
    return alone


def replies(count: int) -> list[Rollout]:
    """`count` replies to prompts of the shipped sample: the therapists' own, each to another prompt, in rotation."""
    prompts = [
        Prompt(f"{d.id}#{i}", (1,), d.turns[:i], turn.text, d.labels.get("emotion", ""), turn.labels)
        for d in load(CorpusConfig()).train
        for i, turn in enumerate(d.turns)
        if i and turn.speaker is Speaker.THERAPIST
    ]
    said = [prompt.reference for prompt in prompts]
    made = []
    for k in range(count):
        prompt, text = prompts[k // SAMPLES % len(prompts)], said[(7 * k + 3) % len(said)]
        size = len(text.split())
        made.append(
            Rollout(
                prompt,
                k % SAMPLES,
                tuple(range(size)),
                (-1.0,) * size,
                (VersionSpan(0, 0, size),),
                text,
                Finish.STOPPED,
            )
        )
    return made


def terms_of(batch: Sequence[Rollout], rounds: int) -> dict[str, float]:
    """Seconds of each term alone, the texts already embedded; "(embedding)" is what they share."""
    config = offline(2)
    bench = Workbench(config)
    terms = {name: TERMS[name](bench) for name in config.measured}
    panel = Panel(config)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        start = time.perf_counter()
        panel.measure(batch)
        whole = time.perf_counter() - start
        for name, term in terms.items():  # a first pass embeds
            ask(name, term, batch)
        for name, term in terms.items():
            start = time.perf_counter()
            ask(name, term, batch)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
        seconds.setdefault("(embedding)", []).append(whole - sum(spent[-1] for spent in seconds.values() if len(spent)))
        bench.clear()
    return {name: median(spent) for name, spent in seconds.items()}


def main() -> None:
    """Print texts/s of 1, 2 and 4 actors, taken in turn, and where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replies", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    batch = replies(options.replies)
    connect()
    fleets = {}
    for actors in (1, 2, 4):
        placement = Placement([Claim(FLEET, actors, 0.25, 0)])
        fleets[actors] = RewardFleet(offline(actors), placement, environment={"OMP_NUM_THREADS": "1"})
        fleets[actors].ready()
        fleets[actors].score(batch)
    spent: dict[int, list[float]] = {actors: [] for actors in fleets}
    for _ in range(options.rounds):
        for actors, fleet in fleets.items():
            start = time.perf_counter()
            fleet.score(batch)
            spent[actors].append(time.perf_counter() - start)
    ray.shutdown()
    print(f"{len(offline(2).measured)} terms, {len(batch)} replies a call, {options.rounds} rounds")
    for actors, seconds in spent.items():
        ratios = [one / other for one, other in zip(spent[1], seconds, strict=True)]
        print(
            f"{actors} actors: {len(batch) / median(seconds):7.1f} texts/s, {median(ratios):.2f} x one actor "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    for name, one in sorted(terms_of(batch, 3).items(), key=lambda item: -item[1]):
        print(f"  {name:16} {1000 * one / len(batch):7.2f} ms a reply")


if __name__ == "__main__":
    main()
