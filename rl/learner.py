"""The PPO learner of one rank: annotate, update, publish, save, restore. Plain class; every method is a collective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cluster.device import current_device, peak_memory_bytes, release_cached_memory
from rl.advantages import (
    KlController,
    gae,
    group_relative,
    kl_penalty,
    last_token_B,
    leave_one_out,
    masked_moments,
    shape_rewards,
    whiten,
)
from rl.batch import Batch, Experience, UpdateReport
from rl.config import PpoRecipe
from rl.endings import NonFiniteLoss
from rl.losses import (
    ValueLoss,
    entropy_bonus,
    importance_mask,
    importance_weights,
    load_balancing_loss,
    policy_loss,
    reply_weights,
    value_loss,
)
from rl.micro_batches import MicroBatch, Pairs, Sizes, deal_rows, lay_out, rows_of, sizes_of
from rl.policy import ActorCritic, Role, TokenStats
from rl.publisher import Publisher
from rollout.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from rollout.weight_stream import EngineSyncClient

_COLUMNS = ("policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl", "policy/balance_loss",
            "policy/kl_loss", "value/loss", "value/clip_fraction")  # fmt: skip


class PpoLearner:
    """PPO on policy and critic (Schulman et al. 2017; RLHF form of Ziegler et al. 2019 and Ouyang et al. 2022).

    Every rank holds the whole batch (token ids are small) and computes its share of the rows, so that minibatches, and
    with them the gradients, do not depend on the number of ranks. All randomness is a function of the run's seed and the
    number of updates made: nothing else needs restoring.
    """

    def __init__(self, recipe: PpoRecipe) -> None:
        from rl.zero import ZeroEngine  # the driver names this class, and saves the seconds of DeepSpeed

        self._recipe = recipe
        self._device = current_device()
        if self._device.kind == "cpu":
            torch.set_num_threads(recipe.learner.threads)
        torch.manual_seed(recipe.seed)
        ppo = recipe.ppo
        self._zero = ZeroEngine(
            lambda load: ActorCritic(
                recipe.model, load, has_critic=ppo.has_critic, entropy_gradient=ppo.entropy_coef > 0
            ),
            lambda module: module.trainable(),
            model=recipe.model,
            config=recipe.learner,
            device=self._device,
            betas=ppo.betas,
            weight_decay=ppo.weight_decay,
            max_grad_norm=ppo.max_grad_norm,
        )
        self._publisher = Publisher(recipe, self._zero)
        self._kl = KlController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
        self._updates = 0

    def annotate(self, batch: Batch) -> Experience:
        """Log-probs, reference log-probs and values of a batch; from them advantages and returns.

        A reply that the token budget cut short has not earned its score yet: where `ppo.bootstraps` the critic's estimate of
        what comes stands in its place (both together would pay twice, and teach the policy not to end). `"score"` takes the cut
        as the end. A red flag is paid its floor at once, finished or not.

        Where nothing asks for the policy's log-probs before its update makes them itself, they stay out ([B, 0]).
        """
        batch = _to(batch, self._device.torch)
        ppo, zero = self._recipe.ppo, self._zero
        found_B3S = torch.zeros(batch.rows, 3, batch.tokens_BS.shape[1], device=zero.device)
        counts_LE = torch.zeros(0, 0, device=zero.device)
        with torch.no_grad():
            parts = self._parts(batch, sizes_of(batch), range(batch.rows))
            sparse = getattr(zero.engine.module.policy.config, "num_local_experts", 0) > 0
            later = ppo.update_says_logprobs(micro_batches=len(parts), sparse=sparse)
            for part in parts:
                if not later:
                    policy = self._stats(Role.POLICY, part)
                    part.put_back(policy.logprobs_RV, found_B3S[:, 0])
                    counts_LE = policy.router_counts_LE + (counts_LE if counts_LE.numel() else 0)
                part.put_back(self._stats(Role.REFERENCE, part).logprobs_RV, found_B3S[:, 1])
                if ppo.has_critic:
                    part.put_back(self._values(part), found_B3S[:, 2])
            found_B3S = zero.all_reduce(found_B3S)  # each reply was one rank's; the others have 0 there
            counts_LE = zero.all_reduce(counts_LE)
        logprobs_BT, reference_BT, values_BS = found_B3S[:, 0, :-1], found_B3S[:, 1, :-1], found_B3S[:, 2]
        advantages_BT, values_BT, returns_BT = self._advantages(batch, logprobs_BT, reference_BT, values_BS)
        weights_BT = self._weights(logprobs_BT, batch.sampled_logprobs_BT, batch.mask_BT)
        experience = Experience(
            **vars(batch),
            logprobs_BT=logprobs_BT[:, :0] if later else logprobs_BT.contiguous(),
            reference_logprobs_BT=reference_BT.contiguous(),
            values_BT=values_BT,
            weights_BT=weights_BT[:, :0] if later else weights_BT,
            advantages_BT=advantages_BT,
            returns_BT=returns_BT,
            token_share_LE=_shares(counts_LE),
        )
        return _to(experience, torch.device("cpu"))  # it travels through the driver, which may have no device

    def _weights(self, logprobs: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
        """Importance weights of tokens, as the recipe says."""
        ppo = self._recipe.ppo
        weights = importance_weights(logprobs, sampled, mask, cap=ppo.importance_cap)
        if ppo.importance_mask is None:
            return weights
        low, high = ppo.importance_mask
        return weights * importance_mask(logprobs, sampled, mask, low=low, high=high)

    def _advantages(
        self, batch: Batch, logprobs_BT: Tensor, reference_BT: Tensor, values_BS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages, and the critic's values and returns ([B, 0] without one), as `ppo.estimator` says."""
        ppo, mask_BT = self._recipe.ppo, batch.mask_BT
        counted_B, none_B0 = mask_BT.any(1), values_BS[:, :0]
        kl_BT = kl_penalty(logprobs_BT, reference_BT, mask_BT, kind=ppo.kl_kind)
        if ppo.has_groups:
            if ppo.estimator == "rloo":
                paid_B = batch.score_B - self._kl.coef * kl_BT.sum(1)
                advantage_B = leave_one_out(paid_B, batch.group_B, counted_B)
            else:
                scaled = ppo.estimator == "grpo"
                advantage_B = group_relative(batch.score_B, batch.group_B, counted_B, scaled=scaled)
            return torch.where(mask_BT, advantage_B[:, None], 0), none_B0, none_B0
        unpaid_B = batch.unfinished_B & ppo.bootstraps
        rewards_BT = shape_rewards(torch.where(unpaid_B, 0, batch.score_B), kl_BT, mask_BT, kl_coef=self._kl.coef)
        if not ppo.has_critic:  # REINFORCE++: what is still to come, against the mean over all
            rest_BT, _ = gae(
                rewards_BT,
                torch.zeros_like(rewards_BT),
                torch.zeros_like(batch.score_B),
                mask_BT,
                gamma=ppo.gamma,
                lam=1,
            )
            return whiten(rest_BT, mask_BT, masked_moments(rest_BT, mask_BT)), none_B0, none_B0
        beyond_B = values_BS.gather(1, last_token_B(mask_BT)[:, None] + 1).squeeze(1)
        last_value_B = torch.where(unpaid_B, beyond_B, 0)
        values_BT = torch.where(mask_BT, values_BS[:, :-1], 0)
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, last_value_B, mask_BT, gamma=ppo.gamma, lam=ppo.lam)
        if ppo.whiten:
            advantages_BT = whiten(advantages_BT, mask_BT, masked_moments(advantages_BT, mask_BT))
        return advantages_BT, values_BT, returns_BT

    def update(self, experience: Experience) -> UpdateReport:
        """Epochs x minibatches of PPO on `experience`, each minibatch one optimizer update.

        Raises NonFiniteLoss before the update that a NaN or infinite loss would make.
        """
        experience = _to(experience, self._device.torch)
        ppo, zero = self._recipe.ppo, self._zero
        totals, norms, ratio_max, made = torch.zeros(len(_COLUMNS), device=zero.device), [], 0.0, 0
        found_BS = torch.zeros(experience.tokens_BS.shape, device=zero.device)  # log-probs, of this rank's replies
        sizes = sizes_of(experience)
        for _ in range(ppo.epochs):
            stop = False
            for rows in self._permutation(experience.rows).chunk(ppo.minibatches):
                sums, ratio = self._minibatch(experience, sizes, rows.to(zero.device), found_BS)
                totals, ratio_max, made = totals + sums, max(ratio_max, ratio), made + 1
                norms.append(zero.grad_norm)
                if not math.isfinite(norms[-1]):
                    raise NonFiniteLoss(f"the gradient of update {self._updates - 1} is not finite")
                stop = ppo.kl_stop is not None and float(sums[_COLUMNS.index("policy/approx_kl")]) > ppo.kl_stop
                if stop:
                    break
            if stop:
                break
        if not experience.logprobs_BT.numel():
            logprobs_BT = zero.all_reduce(found_BS)[:, :-1]
            weights_BT = self._weights(logprobs_BT, experience.sampled_logprobs_BT, experience.mask_BT)
            experience = replace(experience, logprobs_BT=logprobs_BT, weights_BT=weights_BT)
        columns = dict(zip(_COLUMNS, (totals / made).tolist(), strict=True))
        absent = [*([] if ppo.has_critic else ["value/"]), *([] if ppo.kl_in_loss else ["policy/kl_loss"])]
        metrics = {name: value for name, value in columns.items() if not name.startswith(tuple(absent))}
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

    def _minibatch(self, experience: Experience, sizes: Sizes, rows: Tensor, found_BS: Tensor) -> tuple[Tensor, float]:
        ppo, zero = self._recipe.ppo, self._zero
        tokens = max(float(experience.mask_BT[rows].sum()), 1.0)  # a minibatch of dropped replies has none
        real_tokens = float(experience.lengths_B[rows].sum())
        shares_BT = torch.zeros_like(experience.sampled_logprobs_BT)
        shares_BT[rows] = reply_weights(experience.mask_BT[rows], ppo.average, budget=self._recipe.sampling.max_tokens)
        sums, ratio_max, rates = torch.zeros(len(_COLUMNS), device=zero.device), 0.0, self._rates()
        parts = self._parts(experience, sizes, rows.tolist())
        for index, part in enumerate(parts):
            last, mask_RV, shares_RV = index + 1 == len(parts), part.mask_RV, part.place(shares_BT)
            stats = self._stats(Role.POLICY, part)
            before_RV, weights_RV, token_share_LE = self._before(experience, part, stats)
            part.put_back(before_RV, found_BS)
            policy = policy_loss(
                stats.logprobs_RV, before_RV, part.place(experience.advantages_BT), mask_RV, weights_RV * shares_RV,
                tokens=tokens, clip_low=ppo.clip_low, clip_high=ppo.clip_high, dual_clip=ppo.dual_clip,
            )  # fmt: skip
            entropy = entropy_bonus(stats.entropy_RV, mask_RV * (weights_RV > 0), tokens=tokens)
            loss = policy.loss - ppo.entropy_coef * entropy
            none = loss.new_zeros(())
            balance, kl, value = none, none, ValueLoss(none, none)
            if token_share_LE.numel():
                balance = load_balancing_loss(stats.router_probs_LE / real_tokens, token_share_LE)
                loss = loss + ppo.balance_coef * balance
            if ppo.kl_in_loss:
                reference_RV = part.place(experience.reference_logprobs_BT)
                kl_RV = kl_penalty(stats.logprobs_RV, reference_RV, mask_RV, kind=ppo.kl_kind)
                kl = (weights_RV * shares_RV * kl_RV).sum() / tokens
                loss = loss + self._kl.coef * kl
            self._backward(loss, rates, last=last and not ppo.has_critic)
            if ppo.has_critic:
                value = value_loss(
                    self._values(part)[:, :-1], part.place(experience.values_BT), part.place(experience.returns_BT),
                    mask_RV, tokens=tokens, clip=ppo.value_clip,
                )  # fmt: skip
                self._backward(ppo.value_coef * value.loss, rates, last=last)
            sums += torch.stack(
                [policy.loss, entropy, policy.clip_fraction, policy.kl, balance, kl, value.loss, value.clip_fraction]
            ).detach()
            ratio_max = max(ratio_max, float(policy.ratio_max))
        self._updates += 1
        largest = zero.all_reduce(torch.tensor(ratio_max, device=zero.device), "max")
        return zero.all_reduce(sums), float(largest)

    def _before(self, experience: Experience, part: MicroBatch, stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs before the update, importance weights, and the experts' shares of the tokens: annotated, or (see `annotate`)
        what `stats`, of the weights that the update is about to change, says of them."""
        if experience.logprobs_BT.numel():
            before_RV, weights_RV = part.place(experience.logprobs_BT), part.place(experience.weights_BT)
            return before_RV, weights_RV, experience.token_share_LE
        before_RV, sampled_RV = stats.logprobs_RV.detach(), part.place(experience.sampled_logprobs_BT)
        weights_RV = self._weights(before_RV, sampled_RV, part.mask_RV)
        return before_RV, weights_RV, _shares(self._zero.all_reduce(stats.router_counts_LE))

    def _backward(self, loss: Tensor, rates: Mapping[str, float], *, last: bool) -> None:
        finite = torch.isfinite(loss.detach()).float()
        if self._zero.all_reduce(finite, "min") < 1:
            raise NonFiniteLoss(
                f"the loss of update {self._updates} is not finite ({float(loss):g} on rank {self._zero.rank})"
            )
        self._zero.backward(loss, rates, last=last)

    def _parts(self, batch: Batch, sizes: Sizes, replies: Sequence[int]) -> list[MicroBatch]:
        """This rank's micro-batches of the given replies; as many on every rank."""
        learner, ranks = self._recipe.learner, self._zero.world_size
        dealt = deal_rows(
            sizes, replies, ranks=ranks, micro_batch=learner.micro_batch, tokens=learner.micro_batch_tokens
        )
        return [lay_out(batch, rows, sizes) for rows in dealt[self._zero.rank]]

    def _stats(self, role: Role, part: MicroBatch) -> TokenStats:
        return TokenStats(*self._ask(role, part, self._recipe.sampling.temperature))

    def _values(self, part: MicroBatch) -> Tensor:
        values_RW: Tensor = self._ask(Role.CRITIC, part, 1.0)
        return values_RW

    def _ask(self, role: Role, part: MicroBatch, temperature: float) -> Any:
        return self._zero(role, part.rows, temperature)

    def _permutation(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + self._updates)
        return torch.randperm(rows, generator=generator)

    def _rates(self) -> dict[str, float]:
        ppo = self._recipe.ppo
        total = max(self._recipe.steps * ppo.epochs * ppo.minibatches - 1, 1)
        share = 1.0 - (1.0 - ppo.lr_final) * min(self._updates / total, 1.0)
        share *= min((self._updates + 1) / (ppo.lr_warmup + 1), 1.0)
        rates = {"policy": ppo.policy_lr * share}
        return {**rates, "critic": ppo.critic_lr * share} if ppo.has_critic else rates

    def _describe(self, experience: Experience) -> dict[str, float]:
        mask_BT = experience.mask_BT
        gap_BT = torch.where(mask_BT, experience.logprobs_BT - experience.sampled_logprobs_BT, 0)
        kl_BT = kl_penalty(
            experience.logprobs_BT, experience.reference_logprobs_BT, mask_BT, kind=self._recipe.ppo.kl_kind
        )
        described = {
            "policy/kl": float(kl_BT.sum(1).mean()),
            "kl/coef": self._kl.coef,
            "rollout/logprob_gap": float(gap_BT.abs().max()),
            "rollout/importance_weight": float(experience.weights_BT[mask_BT].mean()),
            "rollout/importance_masked": float((experience.weights_BT[mask_BT] == 0).float().mean()),
        }
        if not self._recipe.ppo.has_critic:
            return described
        returns_N, values_N = experience.returns_BT[mask_BT], experience.values_BT[mask_BT]
        unexplained = (returns_N - values_N).var(correction=0) / returns_N.var(correction=0).clamp_min(1e-12)
        return {
            **described,
            "value/explained_variance": float(1 - unexplained),
            "value/mean": float(values_N.mean()),
        }

    def publish(self, client: EngineSyncClient, version: int, connect: bool) -> dict[str, float]:
        """Send the weights that training changes to every engine; on return all later tokens are of `version`.

        `connect` makes the transport's handshake first: at the first publish, and when engines were replaced.
        """
        return self._publisher.publish(client, version, connect)

    def make_room(self) -> None:
        """Give back device memory that holds nothing: an engine on the same device is about to wake."""
        release_cached_memory(self._device)

    def resend(self, client: EngineSyncClient, version: int, group: str) -> None:
        """Send one tensor group again: how a bad publish is traced to its tensors."""
        self._publisher.resend(client, version, group)

    def groups(self) -> list[str]:
        """Names of the tensor groups that `resend` takes; none where the transport cannot send a part."""
        return self._publisher.groups()

    def doing(self) -> str:
        """What this rank's publish is at, for whoever waits for it. Answers beside a publish; no collective."""
        return self._publisher.progress.doing

    def probe(self, sequences: Pairs) -> list[list[float]]:
        """Log-probs at temperature 1 of the reply tokens of (prompt ids, reply ids) pairs."""
        return [
            logprobs[mask].tolist()
            for stats, mask_RV in self._read(sequences)
            for logprobs, mask in zip(stats.logprobs_RV, mask_RV, strict=True)
        ]

    def router_margins(self, sequences: Pairs) -> list[float]:
        """By how many nats the closest choice of experts in each of `sequences` was made: where two are as good as equal, another
        kernel's rounding may take the other."""
        return [margin for stats, _ in self._read(sequences) for margin in stats.router_margin_R.tolist()]

    def _read(self, sequences: Pairs) -> Iterator[tuple[TokenStats, Tensor]]:
        self._publisher.progress.doing = "computing the probe"
        micro = self._recipe.learner.micro_batch
        for part in (sequences[start : start + micro] for start in range(0, len(sequences), micro)):
            rows = rows_of(part).to(self._zero.device)
            with torch.no_grad():
                yield TokenStats(*self._zero(Role.POLICY, rows, 1.0)), rows.mask_RV

    def save(self, folder: Path) -> dict[str, float]:
        """Write weights, optimizer and the exported policy under `folder`; returns the learner's small state."""
        from rl.export import export_policy
        from rl.zero import PolicyStream

        self._zero.save(folder / "learner")
        whole = PolicyStream(self._zero.engine.module.policy, only_trained=False)
        export_policy(whole, self._zero.engine.module.policy.config, folder / "policy", write=self._zero.rank == 0)
        if self._zero.rank == 0:
            load_tokenizer(self._recipe.model.path, self._recipe.model.revision).save_pretrained(folder / "policy")
        return {"kl_coef": self._kl.coef, "updates": self._updates}

    def restore(self, folder: Path, state: Mapping[str, float]) -> None:
        """Continue as if never interrupted from what `save` wrote, with the same model and number of ranks."""
        self._zero.load(folder / "learner")
        self._kl = replace(self._kl, coef=state["kl_coef"])
        self._updates = int(state["updates"])


def _shares(counts_LE: Tensor) -> Tensor:
    """The share of each expert in the choices of its layer."""
    return counts_LE / counts_LE.sum(1, keepdim=True).clamp_min(1)


def _to(batch, device: torch.device):  # type: ignore[no-untyped-def]
    return replace(batch, **{name: tensor.to(device) for name, tensor in vars(batch).items()})
