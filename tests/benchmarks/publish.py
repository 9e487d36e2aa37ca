"""What a publish moves and how long it takes: everything, merged groups, the adapter; README.md says how to read it."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import ray
import torch
from transformers import AutoTokenizer

from cluster.placement import Claim, Placement, connect
from cluster.workers import WorkerGroup
from rl.config import PpoRecipe, PublishConfig, PublishedPart, TinyConfig
from rl.fleet import FLEET as LEARNER
from rl.learner import PpoLearner
from rl.ppo import spec_of
from rl.publisher import Publisher
from rl.tiny import build
from rl.zero import _gathered
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import load as load_corpus
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import EngineClient, RolloutFleet
from rollout.tokenizer import train_tokenizer
from rollout.types import Prompt, Sampling
from tests.tiny import quick_recipe

PARTS: tuple[PublishedPart, ...] = get_args(PublishedPart)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PROBES = [(tuple(range(10, 60)), tuple(range(60, 90))), (tuple(range(300, 380)), tuple(range(7, 30)))]
PROMPTS = [Prompt(f"p{k}", tuple(range(10 + k, 60 + k)), ()) for k in range(8)]
REPLIES = Sampling(n=4, max_tokens=32)


class Bench:
    """One rank: a learner, and a publisher for each thing that can be sent of it."""

    def __init__(self, recipe: PpoRecipe) -> None:
        self.learner = PpoLearner(recipe)
        zero = self.learner._zero
        self._publishers = {part: Publisher(replace(recipe, publish=PublishConfig(what=part)), zero) for part in PARTS}
        self._adapter = [p for name, p in zero.engine.module.policy.named_parameters() if ".lora_" in name]

    def move(self, seed: int) -> None:
        """Change the adapter, on every rank alike, as an update would: a publish that brings nothing shows a gap."""
        torch.manual_seed(seed)
        with torch.no_grad(), _gathered(self._adapter, 0):
            for parameter in self._adapter:
                parameter.copy_(torch.randn_like(parameter) / 16)

    def publish(self, part: PublishedPart, client: EngineClient, version: int, connect: bool) -> dict[str, float]:
        """One publish of one kind."""
        return self._publishers[part].publish(client, version, connect)

    def probe(self, sequences: Any) -> list[list[float]]:
        """The learner's log-probs."""
        return self.learner.probe(sequences)


def measure(recipe: PpoRecipe, end_ids: tuple[int, ...], rounds: int) -> list[dict[str, float]]:
    """A row a round: each kind in turn (`PART/bytes`, `/seconds`, `/gap`), and generation under weights and under the adapter.

    Kinds take turns at being first. Weights go to one engine, the adapter to a second one that has room for it.
    """
    connect()
    ranks = recipe.learner.ranks
    adapted, plain = (replace(recipe, publish=PublishConfig(what=what)) for what in ("adapter", "merged"))
    placement = Placement([Claim(ROLLOUT, 1, 0.2), Claim(LEARNER, ranks, 0.2)])
    beside = Placement([Claim(ROLLOUT, 1, 0.2)])
    try:
        engines = {
            "adapter": RolloutFleet(spec_of(adapted, end_ids), 1, beside, restarts=0),
            "weights": RolloutFleet(spec_of(plain, end_ids), 1, placement, restarts=0),
        }
        group = WorkerGroup(LEARNER, ranks, Bench, (recipe,), placement, environment={"OMP_NUM_THREADS": "1"})
        rows: list[dict[str, float]] = []
        for number in range(rounds + 1):
            row: dict[str, float] = {}
            for turn in range(len(PARTS)):
                part = PARTS[(number + turn) % len(PARTS)]
                engine = engines["adapter" if part == "adapter" else "weights"]
                group.all(Bench.move, number * len(PARTS) + turn)
                sent = group.rank0(Bench.publish, part, engine.client(), number, number == 0)
                row |= {name.replace("publish", part): value for name, value in sent.items()}
                theirs, ours = engine.logprobs(PROBES), group.rank0(Bench.probe, PROBES)
                row[f"{part}/gap"] = max(
                    abs(a - b) for x, y in zip(theirs, ours, strict=True) for a, b in zip(x, y, strict=True)
                )
            for name in sorted(engines, reverse=bool(number % 2)):
                started = time.perf_counter()
                replies = engines[name].generate(PROMPTS, replace(REPLIES, seed=number))
                row[f"{name}/tokens_per_s"] = sum(len(r.response_ids) for r in replies) / (
                    time.perf_counter() - started
                )
            row["generation: adapter / weights"] = row["adapter/tokens_per_s"] / row["weights/tokens_per_s"]
            for part in PARTS[:-1]:
                row[f"seconds: {part} / full"] = row[f"{part}/seconds"] / row["full/seconds"]
            rows.append(row)
        return rows[1:]  # the first one connects, and warms up
    finally:
        placement.release()
        beside.release()
        ray.shutdown()


def show(rows: Sequence[Mapping[str, float]]) -> None:
    """Print medians, least and most."""
    print(f"\n{'':<34}{'median':>12}{'least':>12}{'most':>12}")
    for name in sorted(rows[0]):
        column = [row[name] for row in rows]
        print(f"{name:<34}{median(column):12.4g}{min(column):12.4g}{max(column):12.4g}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.publish", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count, behind one that does not")
    parser.add_argument("--hidden", type=int, default=512, help="width of the small Mistral")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for every round")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="attune-benchmark-") as folder:
        chat = Chat(train_tokenizer(load_corpus(CorpusConfig()).train, 2000))
        tiny = TinyConfig(shape="mistral", hidden=args.hidden, heads=8, layers=args.layers, context=192)
        model = Path(folder) / "model"
        build(tiny, chat.tokenizer).save_pretrained(model)
        chat.tokenizer.save_pretrained(model)
        recipe = quick_recipe(
            model, Path(folder), model__tuning="lora", model__lora__targets=TARGETS, model__lora__rank=args.rank,
            learner__zero_stage=args.zero_stage,
        )  # fmt: skip
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        rows = measure(recipe, Chat(AutoTokenizer.from_pretrained(model)).end_ids, args.rounds)
        show(rows)
        print(f"load {os.getloadavg()[0]:.1f}")
        if args.out:
            args.out.write_text(
                json.dumps({"settings": vars(args) | {"out": str(args.out)}, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
