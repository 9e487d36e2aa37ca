"""The supervised learner of one rank: update, validate, sample, save, restore. Plain class; every method is a collective."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.device import current_device, peak_memory_bytes
from rl.endings import NonFiniteLoss
from rl.export import export_policy
from rl.sequences import Rows, lay_out, shares, trained_tokens
from rl.sft_config import SftRecipe
from rl.tuning import TunedPolicy
from rl.zero import PolicyStream, ZeroEngine, add_label_tokens
from rollout.chat import Chat, Example
from rollout.tokenizer import load_tokenizer


class SftLearner:
    """Next-token cross-entropy on the trained tokens of a global batch: their mean, whatever the sharding or packing.

    `tokenizer` is the folder of the run's tokenizer, `label_words` the words of each label token that it gained. All
    randomness is a function of seed, rank and update.
    """

    def __init__(self, recipe: SftRecipe, tokenizer: Path, label_words: Mapping[int, str], updates: int) -> None:
        self._recipe, self._tokenizer, self._total = recipe, tokenizer, updates
        self._device = current_device()
        if self._device.kind == "cpu":
            torch.set_num_threads(recipe.learner.threads)
        torch.manual_seed(recipe.seed)
        sft, learner = recipe.sft, recipe.learner
        self.chat = Chat(load_tokenizer(str(tokenizer)))

        def build(load: Any) -> TunedPolicy:
            def with_labels() -> Any:
                model = load()
                if label_words:
                    add_label_tokens(model, self.chat.tokenizer, label_words)
                return model

            return TunedPolicy(recipe.model, with_labels)

        self._zero = ZeroEngine(
            build,
            lambda module: module.trainable(),
            model=recipe.model,
            config=learner,
            device=self._device,
            betas=sft.betas,
            weight_decay=sft.weight_decay,
            max_grad_norm=sft.max_grad_norm,
        )
        self._module: TunedPolicy = self._zero.engine.module
        self._updates = 0

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self._zero.rank

    def describe(self) -> dict[str, float]:
        """How much of the model trains."""
        sizes = [
            (p.ds_numel if hasattr(p, "ds_numel") else p.numel(), p.requires_grad) for p in self._module.parameters()
        ]
        trained, held = sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
        return {"model/trainable": float(trained), "model/trainable_share": trained / held}

    def update(self, batch: Sequence[Example]) -> dict[str, float]:
        """One optimizer update. Raises NonFiniteLoss, before the update, when the loss is NaN or infinite."""
        zero, learner = self._zero, self._recipe.learner
        torch.manual_seed((self._recipe.seed * 1_000_003 + self._updates) * zero.world_size + zero.rank)  # dropout
        tokens, rate = trained_tokens(batch), self._rate()
        total = torch.zeros((), device=zero.device)
        parts = shares(batch, zero.world_size, learner.micro_batch)[zero.rank]
        for index, part in enumerate(parts):
            loss = zero(*self._rows(part)) / tokens
            if zero.all_reduce(torch.isfinite(loss.detach()).float(), "min") < 1:
                raise NonFiniteLoss(f"the loss of update {self._updates} is not finite")
            zero.backward(loss, {"policy": rate}, last=index + 1 == len(parts))
            total += loss.detach()
        self._updates += 1
        return {
            "train/loss": float(zero.all_reduce(total)),
            "train/lr": rate,
            "train/grad_norm": zero.grad_norm,
            "train/tokens": float(sum(len(example.token_ids) for example in batch)),
            "train/trained_tokens": float(tokens),
            "learner/peak_memory_bytes": float(peak_memory_bytes(self._device)),
        }

    @torch.no_grad()
    def validate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Mean cross-entropy (nats) of the trained tokens, and its exponential. Raises NonFiniteLoss."""
        zero, micro = self._zero, self._recipe.learner.micro_batch
        was_training = self._module.training
        self._module.eval()
        total = torch.zeros((), device=zero.device)
        for part in shares(examples, zero.world_size, micro)[zero.rank]:
            total += zero(*self._rows(part))
        self._module.train(was_training)
        loss = float(zero.all_reduce(total)) / trained_tokens(examples)
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the validation loss after update {self._updates - 1} is not finite")
        return {"valid/loss": loss, "valid/perplexity": math.exp(min(loss, 700.0))}

    def sample(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """A sampled reply to each prompt; the same at every call while the weights are the same."""
        if not prompts:
            return []
        zero, sft, recipe = self._zero, self._recipe.sft, self._recipe
        own = list(range(zero.rank, len(prompts), zero.world_size)) or [0]
        torch.manual_seed(recipe.seed * zero.world_size + zero.rank)
        ids = self._module.sample(
            [prompts[k] for k in own],
            max_tokens=sft.sample_tokens,
            temperature=sft.temperature,
            end_ids=self.chat.end_ids,
            synced=recipe.learner.zero_stage == 3,
        )
        texts = {
            k: str(self.chat.tokenizer.decode(row, skip_special_tokens=True)).strip()
            for k, row in zip(own, ids, strict=True)
        }
        gathered: list[Any] = [None] * zero.world_size
        torch.distributed.all_gather_object(gathered, texts)
        merged = dict(itertools.chain.from_iterable(found.items() for found in gathered))
        return [merged[k] for k in range(len(prompts))]

    def save(self, folder: Path) -> dict[str, float]:
        """Write weights, optimizer and the exported policy under `folder`; returns the learner's small state."""
        self._zero.save(folder / "learner")
        policy, writes = folder / "policy", self._zero.rank == 0
        if self._recipe.model.merges:
            model = self._module.policy
            export_policy(PolicyStream(model, only_trained=False), model.config, policy, write=writes)
        else:
            with self._zero.gathered(list(self._module.prompt_encoder.parameters())):
                if writes:
                    self._module.save_adapter(policy)
        if writes:
            for path in self._tokenizer.iterdir():
                shutil.copy(path, policy)
        return {"updates": self._updates}

    def restore(self, folder: Path, state: Mapping[str, float]) -> None:
        """Continue as if never interrupted from what `save` wrote, with the same model and number of ranks."""
        self._zero.load(folder / "learner")
        self._updates = int(state["updates"])

    def _rows(self, part: Sequence[Example]) -> Rows:
        rows = lay_out(part, capacity=self._recipe.data.max_tokens, packed=self._recipe.packs)
        return Rows(*(tensor.to(self._zero.device) for tensor in rows))

    def _rate(self) -> float:
        sft = self._recipe.sft
        share = 1.0 - (1.0 - sft.lr_final) * min(self._updates / max(self._total - 1, 1), 1.0)
        return sft.lr * share * min((self._updates + 1) / (sft.lr_warmup + 1), 1.0)
