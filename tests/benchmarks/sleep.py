"""Sleep, wake and publish by layout, on real devices: seconds, bytes, and the memory that sleeping engines give back."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from cluster.placement import Placement, connect, has_gpus
from cluster.settings import load
from rewards.types import Score
from rl.batch import collate
from rl.config import PpoRecipe
from rl.intake import with_model
from rl.layout import claims, described
from rl.loop import attach, step_sampling
from rl.ppo import Job
from rollout.corpora import Corpus
from rollout.corpora import load as load_corpus
from rollout.types import Sampling

ROOT = Path(__file__).parents[2]
WARM_UP_ROUNDS = 1
# engines, learner ranks, and the devices that they need together
LAYOUTS = {"colocated": (1, 1, 1), "dedicated": (1, 1, 2), "mixed": (2, 1, 2)}
COLUMNS = {
    "time/sleep_s": "sleep s",
    "time/wake_s": "wake s",
    "publish/seconds": "publish s",
    "publish/bytes": "bytes",
    "rate/bytes_per_s": "bytes/s",
    "publish/logprob_gap": "gap nats",
    "memory/working_bytes": "in use: learning",
    "memory/generating_bytes": "in use: generating",
}


def used_bytes() -> float:
    """Memory in use on all devices of this machine."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return 2.0**20 * sum(int(line) for line in subprocess.check_output(query, text=True).split())


def measure(recipe: PpoRecipe, corpus: Corpus, rounds: int) -> list[dict[str, float]]:
    """Rounds of generate, learn, publish; a row each, behind the warm-up."""
    placement, rows = Placement(claims(recipe, on_gpu=has_gpus())), list[dict[str, float]]()
    try:
        job = Job(recipe, corpus, placement, recipe.directory)
        job.ready()
        job.learner.publish(job.engine)
        drawn = Sampling(recipe.sampling.n, recipe.sampling.max_tokens, recipe.sampling.temperature, recipe.seed)
        for step in range(WARM_UP_ROUNDS + rounds):
            rollouts = job.engine.generate(job.prompts.draw(recipe.prompts.per_step), step_sampling(drawn, step))
            generating = used_bytes()
            job.learner.update(job.learner.annotate(collate(attach(rollouts, [Score(0.5)] * len(rollouts)))))
            working = used_bytes()
            row = job.learner.publish(job.engine)
            row |= {"rate/bytes_per_s": row["publish/bytes"] / row["publish/seconds"]}
            rows.append(row | {"memory/working_bytes": working, "memory/generating_bytes": generating})
    finally:
        placement.release()
    return rows[WARM_UP_ROUNDS:]


def show(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Median, least and most of what the layout has."""
    print(f"\n{name}\n{'':<22}{'median':>12}{'least':>12}{'most':>12}")
    for column, label in COLUMNS.items():
        if column in rows[0]:
            values = [row[column] for row in rows]
            print(f"{label:<22}" + "".join(f"{v:12.4g}" for v in (median(values), min(values), max(values))))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each layout that the devices here hold; say so where there is none."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.sleep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--recipe", default="local", help="a shipped recipe, or a .toml file")
    parser.add_argument("--model", type=Path, help="a model's folder; else the recipe's tiny one is built")
    parser.add_argument("--rounds", type=int, default=5, help=f"rounds that count, behind {WARM_UP_ROUNDS} that do not")
    parser.add_argument("--out", type=Path, help="a JSON file for every round")
    args = parser.parse_args(argv)
    connect()
    if not has_gpus():
        print("no CUDA device here, or vLLM's CPU build: sleep mode and CUDA publishes need both; nothing was measured")
        return
    devices = int(ray.cluster_resources()["GPU"])
    path = Path(args.recipe) if args.recipe.endswith(".toml") else ROOT / "rl" / "recipes" / f"{args.recipe}.toml"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="attune-benchmark-") as folder:
        for mode, (engines, ranks, needed) in LAYOUTS.items():
            for tuning in ("full", "lora"):
                if needed > devices:
                    print(f"\n{mode}, {tuning}: needs {needed} devices, {devices} here; not measured")
                    continue
                sample = {
                    "runs": folder, "name": f"{mode}-{tuning}", "placement.mode": mode, "rollout.engines": engines,
                    "rollout.tensor_parallel": 1, "learner.ranks": ranks, "model.tuning": tuning, "model.dtype": "bfloat16",
                    "model.tiny.warmup_steps": 0, "rollout.memory_utilization": 0.4, "evaluation.every": 0,
                }  # fmt: skip
                sample |= {"model.path": str(args.model.resolve())} if args.model else {}
                recipe = load(PpoRecipe, path, sample=sample)
                corpus = load_corpus(recipe.corpus)
                recipe.directory.mkdir(parents=True)
                recipe = with_model(recipe, corpus, recipe.directory)
                name = f"{tuning}, sleep level {recipe.sleep_level}, {described(recipe, on_gpu=True)}"
                found[name] = measure(recipe, corpus, args.rounds)
                show(name, found[name])
    if args.out:
        args.out.write_text(json.dumps({"devices": devices, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
