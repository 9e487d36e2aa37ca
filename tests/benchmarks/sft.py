"""Supervised updates against a bare DeepSpeed loop on the same batches; README.md beside this file says how to read it."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import deepspeed
import ray
import torch
from torch import Tensor

from cluster.device import current_device
from cluster.placement import Placement, connect
from cluster.settings import load
from cluster.tracking import Trackers
from cluster.workers import WorkerGroup
from rl.fleet import FLEET
from rl.intake import with_model
from rl.records import trackers
from rl.sequences import draw, lay_out, read_examples, shares
from rl.sft import claims
from rl.sft_config import SftRecipe
from rl.sft_learner import SftLearner
from rl.sft_lesson import Lesson, prepare
from rl.zero import _deepspeed_settings, load_model
from rollout.chat import Example
from rollout.corpora import load as load_corpus

ROOT = Path(__file__).parents[2]
WARM_UP = 3


class Bench:
    """One rank: our learner, and beside it what a user of transformers and DeepSpeed would write."""

    def __init__(self, recipe: SftRecipe, lesson: Lesson) -> None:
        self._recipe, self._lesson = recipe, lesson
        self._learner = SftLearner(recipe, lesson.tokenizer, lesson.label_words, lesson.updates)
        device, sft = current_device(), recipe.sft
        model = load_model(recipe.model, device).train()
        self._accumulation = -(-sft.batch // (recipe.learner.ranks * recipe.learner.micro_batch))
        settings = _deepspeed_settings(recipe.model, recipe.learner, sft.max_grad_norm)
        settings |= {"gradient_accumulation_steps": self._accumulation}
        optimizer = torch.optim.AdamW(model.parameters(), lr=sft.lr, betas=sft.betas, weight_decay=sft.weight_decay)
        self._bare, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)  # type: ignore[arg-type]
        self._device = device.torch

    def run(self, updates: int) -> list[tuple[float, float, float, int]]:
        """Seconds of our whole step (drawing to metrics on disk) and of the bare loop's, padded and packed; tokens."""
        train, rank = read_examples(self._lesson.examples("train")), self._learner.rank
        tracker = Trackers(trackers(self._recipe, self._lesson.directory, 0) if rank == 0 else [])
        figures = []
        for step in range(updates):
            torch.distributed.barrier()
            started = time.perf_counter()
            batch = draw(train, self._recipe.sft.batch, step, self._recipe.seed)
            row = self._learner.update(batch)
            tracker.log(step, row)
            torch.distributed.barrier()
            ours = time.perf_counter()
            self._padded(batch)
            torch.distributed.barrier()
            padded = time.perf_counter()
            self._packed(batch)
            torch.distributed.barrier()
            packed = time.perf_counter()
            figures.append((ours - started, padded - ours, packed - padded, int(row["train/tokens"])))
        return figures[WARM_UP:]

    def _padded(self, batch: list[Example]) -> None:
        """As in any tutorial: a row a sequence, right-padded, labels -100 where nothing is trained, transformers' loss."""
        for part in self._parts(batch):
            rows = lay_out(part, capacity=self._recipe.data.max_tokens, packed=False)
            self._step(input_ids=rows.tokens_RS, labels=_labels(rows.tokens_RS, rows.mask_RT))

    def _packed(self, batch: list[Example]) -> None:
        """The same on our packed rows."""
        for part in self._parts(batch):
            rows = lay_out(part, capacity=self._recipe.data.max_tokens, packed=True)
            self._step(
                input_ids=rows.tokens_RS, labels=_labels(rows.tokens_RS, rows.mask_RT), position_ids=rows.positions_RS
            )

    def _parts(self, batch: list[Example]) -> list[list[Example]]:
        return shares(batch, self._recipe.learner.ranks, self._recipe.learner.micro_batch)[self._learner.rank]

    def _step(self, **inputs: Tensor) -> None:
        loss = self._bare(**{name: tensor.to(self._device) for name, tensor in inputs.items()}, use_cache=False).loss
        self._bare.backward(loss)
        self._bare.step()


def _labels(tokens_RS: Tensor, mask_RT: Tensor) -> Tensor:
    labels_RS = torch.full_like(tokens_RS, -100)
    labels_RS[:, 1:][mask_RT] = tokens_RS[:, 1:][mask_RT]
    return labels_RS


def main() -> None:
    """Print tokens/s of each, and ours against the bare loops, update by update."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="sft_local")
    parser.add_argument("--updates", type=int, default=20)
    options, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe: Any = load(SftRecipe, ROOT / f"rl/recipes/{options.recipe}.toml", argv=[*words, "--runs", folder])
        connect()
        corpus = load_corpus(recipe.corpus)
        recipe.directory.mkdir(parents=True)
        recipe = with_model(recipe, corpus, recipe.directory)
        lesson = prepare(recipe, corpus, recipe.directory)
        placement = Placement(claims(recipe))
        threads = {"OMP_NUM_THREADS": str(recipe.learner.threads)}
        group = WorkerGroup(FLEET, recipe.learner.ranks, Bench, (recipe, lesson), placement, environment=threads)
        figures = group.rank0(Bench.run, options.updates + WARM_UP)
        ray.shutdown()
    tokens = sum(row[3] for row in figures)
    for column, name in enumerate(("ours", "bare, padded", "bare, packed")):
        print(f"{name:14} {tokens / sum(row[column] for row in figures):9.0f} tokens/s")
    for column, name in ((1, "padded"), (2, "packed")):
        ratios = sorted(row[column] / row[0] for row in figures)
        print(f"ours / bare {name}: {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) of the tokens/s")


if __name__ == "__main__":
    main()
