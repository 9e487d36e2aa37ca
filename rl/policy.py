"""Policy, critic and reference as one module, and what PPO asks of it: log-probs, entropies, values per token.

Axes: R rows, W tokens, V = W - 1 positions (position v predicts token v + 1), N sampled tokens, L MoE layers, E experts. A row
holds one reply with its prompt or several (`rl.micro_batches`); pads end it: under causal attention no real token sees one, so
no attention mask is needed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from rl.config import LoraConfig, ModelConfig
from rl.router_replay import RouterReplay, replayed

if TYPE_CHECKING:  # the driver names what is here, and saves the seconds that these take
    from peft import LoraConfig as PeftLoraConfig
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput


class Role(enum.StrEnum):
    """Which of the three the module plays in a forward pass."""

    POLICY = "policy"
    CRITIC = "critic"
    REFERENCE = "reference"


class Rows(NamedTuple):
    """What the model reads at once: a row a reply, or several (`rl.micro_batches.MicroBatch` says of each field).

    With `experts_RWLk` the policy's routers choose these (`rl.router_replay`); critic and reference choose by themselves.
    """

    tokens_RW: Tensor
    positions_RW: Tensor
    visible_RWW: Tensor | None
    count_RW: Tensor
    mask_RV: Tensor
    experts_RWLk: Tensor | None = None

    def to(self, device: torch.device) -> Rows:
        """The same on `device`."""
        return Rows(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


class TokenStats(NamedTuple):
    """What the policy or the reference (its log-probs alone) says of each sampled token; zeros off the mask.

    A tuple of tensors, since DeepSpeed hooks a module's outputs. `router_probs_LE` sums the router's probabilities, and
    `router_counts_LE` counts its choices, over real tokens; both [0, 0] for a dense model. `router_margin_R` says by how many
    nats the closest of a row's choices of experts was made (infinite for a dense model).
    """

    logprobs_RV: Tensor
    entropy_RV: Tensor
    router_probs_LE: Tensor
    router_counts_LE: Tensor
    router_margin_R: Tensor


class ValueHead(nn.Linear):
    """Hidden states -> values, computed in float32 whatever the weights' type: bfloat16 keeps 8 bits. Starts at 0."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_RWD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_RWD.float(), self.weight.float(), self.bias.float())


class ActorCritic(nn.Module):
    """Three roles behind one forward.

    `full`: a policy and a critic that train, and a frozen copy of the policy as reference. `lora`: one frozen base; policy
    and critic are adapters on it, the reference is the base with adapters off. The learner does not know which.
    `load` gives a fresh copy of the pretrained model. Without `has_critic` there are only two roles. `entropy_gradient`: a loss
    holds the policy's entropy; else it is only measured.
    """

    def __init__(
        self,
        config: ModelConfig,
        load: Callable[[], PreTrainedModel],
        *,
        has_critic: bool = True,
        entropy_gradient: bool = False,
    ) -> None:
        super().__init__()
        self._entropy_gradient = entropy_gradient
        self.lora = config.lora if config.tuning == "lora" else None
        self.policy = load()
        if self.lora is None:
            self.critic: PreTrainedModel | None = load().base_model if has_critic else None
            self.reference: PreTrainedModel | None = load().requires_grad_(False)
        else:
            self.critic = self.reference = None
            from peft import inject_adapter_in_model

            self.policy.requires_grad_(False)
            for role in (Role.POLICY, Role.CRITIC) if has_critic else (Role.POLICY,):
                inject_adapter_in_model(lora_config(self.lora, self.policy), self.policy, role.value)
            self._train_adapters()
        self._replay = RouterReplay(self.policy)
        width, dtype = self.policy.config.hidden_size, self.policy.dtype
        self.value_head = ValueHead(width, 1, dtype=dtype) if has_critic else None
        for module in self.modules():  # dropout would make the first ratio differ from 1
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if config.gradient_checkpointing:
            for model in (self.policy, self.critic):
                if model is not None:
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                    model.enable_input_require_grads()
        self.train()

    def forward(self, role: Role, rows: Rows, temperature: float) -> TokenStats | Tensor:
        """`TokenStats` of the policy or the reference, or the critic's values_RW (state w: the reply's tokens up to and with w).

        Under gradient checkpointing, run backward before the next role's forward: the recomputation uses the adapter that
        is active then, and the experts that are replayed then.
        """
        if role is not Role.POLICY:
            rows = rows._replace(experts_RWLk=None)
        self._replay.tell(rows.experts_RWLk)
        with self._as(role):
            if role is Role.CRITIC:
                backbone = self.policy.base_model if self.critic is None else self.critic
                hidden = read(backbone, rows).last_hidden_state
                assert self.value_head is not None, "no estimator without a critic asks it"
                return self.value_head(hidden).squeeze(-1)
            model = self.policy if role is Role.POLICY or self.reference is None else self.reference
            if role is Role.REFERENCE:
                return token_stats(model, rows, temperature, only_logprobs=True)
            return token_stats(model, rows, temperature, entropy_gradient=self._entropy_gradient)

    @contextmanager
    def _as(self, role: Role) -> Iterator[None]:
        if self.lora is None:
            yield
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [m for m in self.policy.modules() if isinstance(m, BaseTunerLayer)]
        for layer in layers:
            if role is Role.REFERENCE:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(role.value)
        self._train_adapters()
        try:
            yield
        finally:
            if role is Role.REFERENCE:
                for layer in layers:
                    layer.enable_adapters(True)
                self._train_adapters()

    def _train_adapters(self) -> None:
        """Both adapters train: PEFT freezes the one that is switched off."""
        for name, parameter in self.policy.named_parameters():
            if ".lora_" in name:
                parameter.requires_grad_(True)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters of the policy and, where there is one, of the critic."""
        groups: dict[str, list[nn.Parameter]] = {"policy": []}
        if self.value_head is not None:
            groups["critic"] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_critic = name.startswith(("critic.", "value_head.")) or ".critic." in name
                groups["critic" if is_critic else "policy"].append(parameter)
        return groups


def read(backbone: nn.Module, rows: Rows, **extra: bool) -> BaseModelOutput:
    """The backbone's hidden states, each token attending to what it sees; all before it where `visible_RWW` is None."""
    mask_R1WW, positions_RW = None, rows.positions_RW
    if rows.visible_RWW is not None:
        visible_RWW, window = rows.visible_RWW, getattr(backbone.config, "sliding_window", None)
        if window is not None:  # a mask of one's own takes the place of the model's
            visible_RWW = visible_RWW & (positions_RW[:, :, None] - positions_RW[:, None] < window)
        mask_R1WW = visible_RWW[:, None]
    asked = {"input_ids": rows.tokens_RW, "position_ids": positions_RW, "attention_mask": mask_R1WW}
    return backbone(**asked, use_cache=False, **extra)


def token_stats(
    model: PreTrainedModel,
    rows: Rows,
    temperature: float,
    *,
    only_logprobs: bool = False,
    entropy_gradient: bool = False,
) -> TokenStats:
    """Log-probs and entropies of the sampled tokens under softmax(logits / temperature), in float32 nats.

    Only sampled positions go through the output layer: [N, vocabulary] logits instead of [R, W, vocabulary].
    `only_logprobs` leaves entropies 0, and the router's statistics empty. Without `entropy_gradient` no gradient goes through the
    entropies, and nothing as large as the logits waits for it. The experts of `rows` must be those that `model` was told to
    replay: here they only count.
    """
    mask_RV = rows.mask_RV
    sparse = getattr(model.config, "num_local_experts", 0) > 0
    extra = {"output_router_logits": True} if sparse and not only_logprobs else {}
    output = read(model.base_model, rows, **extra)
    hidden_ND = output.last_hidden_state[:, :-1][mask_RV]
    logits_NV = model.get_output_embeddings()(hidden_ND).float() / temperature
    sampled_N = rows.tokens_RW[:, 1:][mask_RV]
    logprobs_N = -nn.functional.cross_entropy(logits_NV, sampled_N, reduction="none")
    zeros_RV = torch.zeros_like(mask_RV, dtype=torch.float32)
    router = zeros_RV[:0, :0], zeros_RV[:0, :0], zeros_RV.new_full((len(zeros_RV),), torch.inf)
    if only_logprobs:
        return TokenStats(zeros_RV.masked_scatter(mask_RV, logprobs_N), zeros_RV, *router)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        normaliser_N = logits_NV.gather(1, sampled_N[:, None]).squeeze(1) - logprobs_N
        entropy_N = normaliser_N - torch.linalg.vecdot(logits_NV.softmax(-1), logits_NV)
    if sparse:
        router = _router_stats(output.router_logits, rows.count_RW, model, rows.experts_RWLk)
    return TokenStats(
        zeros_RV.masked_scatter(mask_RV, logprobs_N), zeros_RV.masked_scatter(mask_RV, entropy_N), *router
    )


def _router_stats(
    router_logits: tuple[Tensor, ...], count_RW: Tensor, model: PreTrainedModel, experts_RWLk: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    real_RW, k = count_RW > 0, model.config.num_experts_per_tok
    real_N = real_RW.flatten()
    count_N1 = count_RW.flatten()[real_N, None].float()
    probs_LNE = torch.stack([logits.float().softmax(-1)[real_N] for logits in router_logits])
    best_LNk, chosen_LNk = probs_LNE.detach().topk(min(k + 1, probs_LNE.shape[-1]), dim=-1)
    margin_RW = torch.full(real_RW.shape, torch.inf, device=real_RW.device)
    if best_LNk.shape[-1] > k:
        margin_RW[real_RW] = (best_LNk[..., k - 1] / best_LNk[..., k]).log().amin(0)
    chosen_LNk = chosen_LNk[..., :k]
    if experts_RWLk is not None and experts_RWLk.shape[2]:
        chosen_LNk = replayed(chosen_LNk, experts_RWLk[real_RW].transpose(0, 1))
    counts_LE = probs_LNE.new_zeros(probs_LNE.shape[::2]).scatter_add(
        1, chosen_LNk.flatten(1), count_N1.expand_as(chosen_LNk).flatten(1)
    )
    return (count_N1 * probs_LNE).sum(1), counts_LE, margin_RW.amin(1)


def lora_config(lora: LoraConfig, model: PreTrainedModel) -> PeftLoraConfig:
    """PEFT's form of `lora` for `model`. Raises ValueError when no module is a target, or a parameter is not in it.

    A stack of experts W [E, O, I] gets an adapter per expert, W_e + (alpha / rank) * B_e A_e. PEFT adds it to the weights
    before they multiply: without gradient checkpointing every layer's sum is kept for the backward pass, whole on each rank.
    """
    from peft import LoraConfig as PeftLoraConfig
    from transformers.pytorch_utils import Conv1D

    matching = [m for name, m in model.named_modules() if name.rpartition(".")[2] in lora.targets]
    if not matching:
        leaves = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
        raise ValueError(
            f"model.lora.targets {list(lora.targets)} match no module of {type(model).__name__}; it has {', '.join(leaves)}"
        )
    named = {name.replace(".base_layer", "") for name, _ in model.named_parameters()}  # as before the first adapter
    stacks = {".".join(name.split(".")[-2:]) for name in named if not name.endswith((".weight", ".bias"))}
    if unknown := [name for name in lora.target_parameters if name not in stacks]:
        raise ValueError(
            f"model.lora.target_parameters must name stacks of experts, {unknown} are none of {type(model).__name__}; it has "
            f"{', '.join(sorted(stacks)) or 'none: leave the setting empty'}"
        )
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=list(lora.targets),
        target_parameters=list(lora.target_parameters) or None,
        lora_dropout=0.0,
        fan_in_fan_out=isinstance(matching[0], Conv1D),
    )
