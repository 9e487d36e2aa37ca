"""The PPO learner of one rank: annotate, update, publish, save, restore. Plain class; every method is a collective."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cluster.device import current_device, peak_memory_bytes
from rl.advantages import (
    KlController,
    gae,
    kl_penalty,
    last_token_B,
    masked_moments,
    shape_rewards,
    whiten,
)
from rl.batch import Batch, Experience, UpdateReport, by_length
from rl.config import PpoRecipe
from rl.endings import NonFiniteLoss
from rl.losses import entropy_bonus, importance_weights, load_balancing_loss, policy_loss, value_loss
from rl.policy import ActorCritic, Role, TokenStats
from rollout.tokenizer import load_tokenizer
from rollout.weight_stream import EngineSyncClient, SharedMemorySender

if TYPE_CHECKING:
    from rl.zero import PolicyStream

_COLUMNS = ("policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl", "policy/balance_loss",
            "value/loss", "value/clip_fraction")  # fmt: skip


class PpoLearner:
    """PPO on policy and critic (Schulman et al. 2017; RLHF form of Ziegler et al. 2019 and Ouyang et al. 2022).

    Every rank holds the whole batch (token ids are small) and computes its share of the rows, so that minibatches, and
    with them the gradients, do not depend on the number of ranks. All randomness is a function of the run's seed and the
    number of updates made: nothing else needs restoring.
    """

    def __init__(self, recipe: PpoRecipe) -> None:
        from rl.zero import PolicyStream, ZeroEngine  # the driver names this class, and saves the seconds of DeepSpeed

        self._recipe = recipe
        self._device = current_device()
        if self._device.kind == "cpu":
            torch.set_num_threads(recipe.learner.threads)
        torch.manual_seed(recipe.seed)
        ppo, learner = recipe.ppo, recipe.learner
        rows = recipe.replies_per_step // (ppo.minibatches * learner.ranks)
        self._zero = ZeroEngine(
            lambda load: ActorCritic(recipe.model, load),
            lambda module: module.trainable(),
            model=recipe.model,
            config=learner,
            device=self._device,
            accumulation=2 * math.ceil(rows / learner.micro_batch),  # policy, then critic
            betas=ppo.betas,
            weight_decay=ppo.weight_decay,
            max_grad_norm=ppo.max_grad_norm,
        )
        self._stream = PolicyStream(
            self._zero, self._zero.engine.module.policy, only_trained=recipe.model.tuning == "lora"
        )
        self._sender = SharedMemorySender()
        self._cuda_trainer = None
        self._kl = KlController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
        self._updates = 0

    def annotate(self, batch: Batch) -> Experience:
        """Log-probs, reference log-probs and values of a batch; from them advantages and returns.

        A reply that the token budget cut short has not earned its score yet: with `ppo.truncated = "bootstrap"` the
        critic's estimate of what comes stands in its place (both together would pay twice, and teach the policy not to
        end). `"score"` takes the cut as the end. A red flag is paid its floor at once, finished or not.
        """
        batch = _to(batch, self._device.torch)
        ppo, zero = self._recipe.ppo, self._zero
        order_B = by_length(batch, torch.arange(batch.rows, device=zero.device))
        mine = order_B[zero.rank :: zero.world_size]
        columns_R3S = torch.zeros(len(mine), 3, batch.tokens_BS.shape[1], device=zero.device)
        probs_LE = counts_LE = torch.zeros(0, 0, device=zero.device)
        with torch.no_grad():
            for start in range(0, len(mine), self._recipe.learner.micro_batch):
                part = batch.take(mine[start : start + self._recipe.learner.micro_batch])
                policy, reference = self._stats(Role.POLICY, part), self._stats(Role.REFERENCE, part)
                values_BS = zero(Role.CRITIC, part.tokens_BS, part.lengths_B, part.mask_BT, 1.0)
                width = part.tokens_BS.shape[1]
                here = columns_R3S[start : start + part.rows]
                here[:, 0, : width - 1], here[:, 1, : width - 1] = policy.logprobs_BT, reference.logprobs_BT
                here[:, 2, :width] = values_BS
                probs_LE = policy.router_probs_LE + (probs_LE if probs_LE.numel() else 0)
                counts_LE = policy.router_counts_LE + (counts_LE if counts_LE.numel() else 0)
            gathered = zero.all_gather(columns_R3S)
            counts_LE = zero.all_reduce(counts_LE)
        rank_order = torch.cat([order_B[rank :: zero.world_size] for rank in range(zero.world_size)])
        columns_B3S = torch.empty_like(gathered)
        columns_B3S[rank_order] = gathered
        logprobs_BT, reference_BT, values_BS = columns_B3S[:, 0, :-1], columns_B3S[:, 1, :-1], columns_B3S[:, 2]
        mask_BT = batch.mask_BT
        kl_BT = kl_penalty(logprobs_BT, reference_BT, mask_BT, kind=ppo.kl)
        unpaid_B = batch.unfinished_B & (ppo.truncated == "bootstrap")
        rewards_BT = shape_rewards(torch.where(unpaid_B, 0, batch.score_B), kl_BT, mask_BT, kl_coef=self._kl.coef)
        beyond_B = values_BS.gather(1, last_token_B(mask_BT)[:, None] + 1).squeeze(1)
        last_value_B = torch.where(unpaid_B, beyond_B, 0)
        values_BT = torch.where(mask_BT, values_BS[:, :-1], 0)
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=ppo.gamma, lam=ppo.lam)
        if ppo.whiten:
            advantages_BT = whiten(advantages_BT, mask_BT, masked_moments(advantages_BT, mask_BT))
        experience = Experience(
            **vars(batch),
            logprobs_BT=logprobs_BT.contiguous(),
            reference_logprobs_BT=reference_BT.contiguous(),
            values_BT=values_BT,
            weights_BT=importance_weights(logprobs_BT, batch.sampled_logprobs_BT, mask_BT, cap=ppo.importance_cap),
            advantages_BT=advantages_BT,
            returns_BT=returns_BT,
            token_share_LE=counts_LE / counts_LE.sum(1, keepdim=True).clamp_min(1),
        )
        return _to(experience, torch.device("cpu"))  # it travels through the driver, which may have no device

    def update(self, experience: Experience) -> UpdateReport:
        """Epochs x minibatches of PPO on `experience`, each minibatch one optimizer update.

        Raises NonFiniteLoss before the update that a NaN or infinite loss would make.
        """
        assert experience.rows == self._recipe.replies_per_step, "accumulation is laid out for the recipe's batch"
        experience = _to(experience, self._device.torch)
        ppo, zero = self._recipe.ppo, self._zero
        totals, norms, ratio_max, made = torch.zeros(len(_COLUMNS), device=zero.device), [], 0.0, 0
        for _ in range(ppo.epochs):
            stop = False
            for rows in self._permutation(experience.rows).chunk(ppo.minibatches):
                sums, ratio = self._minibatch(experience, rows.to(zero.device))
                totals, ratio_max, made = totals + sums, max(ratio_max, ratio), made + 1
                norms.append(zero.grad_norm)
                if not math.isfinite(norms[-1]):
                    raise NonFiniteLoss(f"the gradient of update {self._updates - 1} is not finite")
                stop = ppo.kl_stop is not None and float(sums[_COLUMNS.index("policy/approx_kl")]) > ppo.kl_stop
                if stop:
                    break
            if stop:
                break
        metrics = dict(zip(_COLUMNS, (totals / made).tolist(), strict=True))
        metrics |= {
            "policy/ratio_max": ratio_max,
            "policy/grad_norm": sum(norms) / len(norms),
            "policy/lr": self._rates()["policy"],
            "policy/updates": float(made),
            "learner/peak_memory_bytes": float(peak_memory_bytes(self._device)),
            **self._describe(experience),
        }
        self._kl = self._kl.after(metrics["policy/kl"], experience.rows)
        return UpdateReport(metrics)

    def _minibatch(self, experience: Experience, rows: Tensor) -> tuple[Tensor, float]:
        ppo, zero, micro = self._recipe.ppo, self._zero, self._recipe.learner.micro_batch
        tokens = max(float(experience.mask_BT[rows].sum()), 1.0)  # a minibatch of dropped replies has none
        real_tokens = float(experience.lengths_B[rows].sum())
        mine = by_length(experience, rows)[zero.rank :: zero.world_size]
        sums, ratio_max, rates = torch.zeros(len(_COLUMNS), device=zero.device), 0.0, self._rates()
        for part in (experience.take(mine[i : i + micro]) for i in range(0, len(mine), micro)):
            stats = self._stats(Role.POLICY, part)
            policy = policy_loss(
                stats.logprobs_BT, part.logprobs_BT, part.advantages_BT, part.mask_BT, part.weights_BT,
                tokens=tokens, clip_low=ppo.clip_low, clip_high=ppo.clip_high, dual_clip=ppo.dual_clip,
            )  # fmt: skip
            entropy = entropy_bonus(stats.entropy_BT, part.mask_BT, tokens=tokens)
            balance = policy.loss.new_zeros(())
            if part.token_share_LE.numel():
                balance = load_balancing_loss(stats.router_probs_LE / real_tokens, part.token_share_LE)
            self._backward(policy.loss - ppo.entropy_coef * entropy + ppo.balance_coef * balance, rates)
            values_BT = zero(Role.CRITIC, part.tokens_BS, part.lengths_B, part.mask_BT, 1.0)[:, :-1]
            value = value_loss(
                values_BT, part.values_BT, part.returns_BT, part.mask_BT, tokens=tokens, clip=ppo.value_clip
            )
            self._backward(ppo.value_coef * value.loss, rates)
            sums += torch.stack(
                [policy.loss, entropy, policy.clip_fraction, policy.kl, balance, value.loss, value.clip_fraction]
            ).detach()
            ratio_max = max(ratio_max, float(policy.ratio_max))
        self._updates += 1
        largest = zero.all_reduce(torch.tensor(ratio_max, device=zero.device), "max")
        return zero.all_reduce(sums), float(largest)

    def _backward(self, loss: Tensor, rates: Mapping[str, float]) -> None:
        finite = torch.isfinite(loss.detach()).float()
        if self._zero.all_reduce(finite, "min") < 1:
            raise NonFiniteLoss(
                f"the loss of update {self._updates} is not finite ({float(loss):g} on rank {self._zero.rank})"
            )
        self._zero.backward(loss, rates)

    def _stats(self, role: Role, part: Batch) -> TokenStats:
        answer = self._zero(role, part.tokens_BS, part.lengths_B, part.mask_BT, self._recipe.sampling.temperature)
        return TokenStats(*answer)

    def _permutation(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + self._updates)
        return torch.randperm(rows, generator=generator)

    def _rates(self) -> dict[str, float]:
        ppo = self._recipe.ppo
        total = max(self._recipe.steps * ppo.epochs * ppo.minibatches - 1, 1)
        share = 1.0 - (1.0 - ppo.lr_final) * min(self._updates / total, 1.0)
        share *= min((self._updates + 1) / (ppo.lr_warmup + 1), 1.0)
        return {"policy": ppo.policy_lr * share, "critic": ppo.critic_lr * share}

    def _describe(self, experience: Experience) -> dict[str, float]:
        mask_BT = experience.mask_BT
        gap_BT = torch.where(mask_BT, experience.logprobs_BT - experience.sampled_logprobs_BT, 0)
        kl_BT = kl_penalty(experience.logprobs_BT, experience.reference_logprobs_BT, mask_BT, kind=self._recipe.ppo.kl)
        returns_N, values_N = experience.returns_BT[mask_BT], experience.values_BT[mask_BT]
        unexplained = (returns_N - values_N).var(correction=0) / returns_N.var(correction=0).clamp_min(1e-12)
        return {
            "policy/kl": float(kl_BT.sum(1).mean()),
            "kl/coef": self._kl.coef,
            "value/explained_variance": float(1 - unexplained),
            "value/mean": float(values_N.mean()),
            "rollout/logprob_gap": float(gap_BT.abs().max()),
            "rollout/importance_weight": float(experience.weights_BT[mask_BT].mean()),
        }

    def publish(self, client: EngineSyncClient, version: int, connect: bool) -> dict[str, float]:
        """Send the weights that training changes to every engine; on return all later tokens are of `version`.

        `connect` makes the transport's handshake first: at the first publish, and when engines were replaced.
        """
        started = time.perf_counter()
        transfer = self._recipe.rollout.weight_transfer
        if transfer == "shared_memory" or (transfer == "auto" and self._device.kind == "cpu"):
            sent = self._publish_shared(client, version, connect)
        else:
            sent = self._publish_cuda("nccl" if transfer == "auto" else transfer, client, version, connect)
        return {"publish/bytes": float(sent), "publish/seconds": time.perf_counter() - started}

    def _publish_shared(self, client: EngineSyncClient, version: int, connect: bool) -> int:
        if self._zero.rank != 0:
            for _ in self._stream:
                pass
            return 0
        return self._sender.send(self._stream, client, version, connect=connect)

    def _publish_cuda(self, transfer: str, client: EngineSyncClient, version: int, connect: bool) -> int:
        from rollout.vllm_weights import cuda_publish, cuda_trainer

        if connect or self._cuda_trainer is None:
            if self._cuda_trainer is not None:
                self._cuda_trainer.shutdown()
            self._cuda_trainer = cuda_trainer(transfer, self._stream, client, rank=self._zero.rank)
        cuda_publish(self._cuda_trainer, client, version)
        return sum(spec.bytes for spec in self._stream.specs())

    def resend(self, client: EngineSyncClient, version: int, group: str) -> None:
        """Send one tensor group again (shared memory): how a bad publish is traced to its tensors."""
        only = _OneGroup(self._stream, group)
        if self._zero.rank == 0:
            self._sender.send(only, client, version)
        else:
            for _ in only:
                pass

    def groups(self) -> list[str]:
        """Names of the tensor groups that a publish sends."""
        return [group.name for group in self._stream]

    def probe(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probs at temperature 1 of the reply tokens of (prompt ids, reply ids) pairs."""
        answers = []
        for prompt, reply in sequences:
            tokens_BS = torch.tensor([[*prompt, *reply]], device=self._zero.device)
            mask_BT = torch.zeros(1, tokens_BS.shape[1] - 1, dtype=torch.bool, device=self._zero.device)
            mask_BT[:, len(prompt) - 1 :] = True
            lengths_B = torch.tensor([tokens_BS.shape[1]], device=self._zero.device)
            with torch.no_grad():
                stats = TokenStats(*self._zero(Role.POLICY, tokens_BS, lengths_B, mask_BT, 1.0))
            answers.append(stats.logprobs_BT[mask_BT].tolist())
        return answers

    def save(self, folder: Path) -> dict[str, float]:
        """Write weights, optimizer and the exported policy under `folder`; returns the learner's small state."""
        from rl.export import export_policy
        from rl.zero import PolicyStream

        self._zero.save(folder / "learner")
        whole = PolicyStream(self._zero, self._zero.engine.module.policy, only_trained=False)
        export_policy(whole, self._zero.engine.module.policy.config, folder / "policy", write=self._zero.rank == 0)
        if self._zero.rank == 0:
            load_tokenizer(self._recipe.model.path, self._recipe.model.revision).save_pretrained(folder / "policy")
        return {"kl_coef": self._kl.coef, "updates": self._updates}

    def restore(self, folder: Path, state: Mapping[str, float]) -> None:
        """Continue as if never interrupted from what `save` wrote, with the same model and number of ranks."""
        self._zero.load(folder / "learner")
        self._kl = replace(self._kl, coef=state["kl_coef"])
        self._updates = int(state["updates"])


class _OneGroup:
    """One group of a stream; the collective still passes every layer."""

    def __init__(self, stream: PolicyStream, group: str) -> None:
        self._stream, self._group = stream, group

    def specs(self):  # type: ignore[no-untyped-def]
        return self._stream.specs()

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (group for group in self._stream if group.name == self._group)


def _to(batch, device: torch.device):  # type: ignore[no-untyped-def]
    return replace(batch, **{name: tensor.to(device) for name, tensor in vars(batch).items()})
