"""The policy's routers choose what they are told, where they are told, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, PreTrainedModel

import rollout.fleet
from rewards.types import Score, ScoredRollout
from rl.batch import collate
from rl.config import LoraConfig, ModelConfig
from rl.intake import check_input
from rl.micro_batches import lay_out, sizes_of
from rl.policy import ActorCritic, Role, Rows, TokenStats
from rl.router_replay import FREE, RouterReplay
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.engine_config import RolloutConfig
from rollout.types import NO_ROUTING, Finish, Prompt, Rollout, Routing, VersionSpan
from rollout.vllm_engine import _rollout
from tests.tiny import EXPERTS, TARGETS, quick_recipe, save_tiny

LENGTHS_B = torch.tensor([20, 17, 11])
MASK_BT = (torch.arange(1, 20) >= 6) & (torch.arange(1, 20) < LENGTHS_B[:, None])
TOKENS_BS = torch.randint(5, 500, (3, 20), generator=torch.Generator().manual_seed(1)) * (
    torch.arange(20) < LENGTHS_B[:, None]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "mixtral")


def built(folder: Path, **settings: Any) -> ActorCritic:
    def load_model() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")

    torch.manual_seed(0)
    return ActorCritic(ModelConfig(dtype="float32", **settings), load_model)


TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full"},
    "lora": {"tuning": "lora", "lora": LoraConfig(4, 8.0, TARGETS["mixtral"], EXPERTS)},
}


def asked(module: ActorCritic, role: Role = Role.POLICY, experts_BSLk: Tensor | None = None) -> Any:
    positions_BS = torch.arange(TOKENS_BS.shape[1]).repeat(len(TOKENS_BS), 1)
    count_BS = (positions_BS < LENGTHS_B[:, None]).long()
    return module(role, Rows(TOKENS_BS, positions_BS, None, count_BS, MASK_BT, experts_BSLk), 1.0)


def routers(module: ActorCritic) -> list[nn.Module]:
    return [layer.mlp.gate for layer in module.policy.model.layers]


def own_choice(module: ActorCritic) -> Tensor:
    """What the policy's routers choose, where an engine would have said so: not at a row's last token, nor on pads."""
    seen: list[Tensor] = []
    hooks = [gate.register_forward_hook(lambda *call: seen.append(call[2][2])) for gate in routers(module)]
    with torch.no_grad():
        asked(module)
    for hook in hooks:
        hook.remove()
    chosen_BSLk = torch.stack([one.view(3, 20, -1) for one in seen], dim=2).to(torch.int16)
    return chosen_BSLk.masked_fill((torch.arange(20) >= LENGTHS_B[:, None] - 1)[:, :, None, None], FREE)


def gradients(module: ActorCritic, stats: TokenStats) -> dict[str, Tensor]:
    module.zero_grad()
    (torch.linspace(-1, 2, stats.logprobs_RV.numel()) * stats.logprobs_RV.flatten()).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_its_own_choice_changes_nothing(folder: Path, tuning: str, checkpointing: bool) -> None:
    """Replay of what the routers would choose leaves log-probs, entropies, router statistics and every gradient bit for bit,
    with and without gradient checkpointing; the routers that train have a gradient."""
    module = built(folder, gradient_checkpointing=checkpointing, **TUNINGS[tuning])
    experts_BSLk = own_choice(module)
    free = asked(module)
    wanted = gradients(module, free)
    told = asked(module, experts_BSLk=experts_BSLk)
    found = gradients(module, told)
    assert all(torch.equal(one, other) for one, other in zip(free, told, strict=True))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    gates = [grad for name, grad in found.items() if name.endswith("mlp.gate.weight")]
    assert (len(gates) == 2) == (tuning == "full") and all(bool(gate.any()) for gate in gates)


def test_other_experts_make_another_policy_of_the_same_gradient(folder: Path) -> None:
    """Replay of other experts changes log-probs and what the counts say; the backward pass under gradient checkpointing, which
    runs the layers again, gives the gradient of the forward pass."""
    results = []
    for checkpointing in (False, True):
        module = built(folder, gradient_checkpointing=checkpointing, **TUNINGS["full"])
        own_BSLk = own_choice(module)
        others_BSLk = torch.where(own_BSLk == FREE, own_BSLk, (own_BSLk + 1) % 4)
        free, told = asked(module), asked(module, experts_BSLk=others_BSLk)
        results.append(gradients(module, told))
        assert (free.logprobs_RV - told.logprobs_RV).abs().max() > 1e-3
        said_LE = torch.stack([(others_BSLk == e).sum((0, 1, 3)) for e in range(4)], dim=1)
        unsaid_LE = told.router_counts_LE - said_LE
        assert (unsaid_LE >= 0).all() and unsaid_LE.sum(1).tolist() == [2 * 3] * 2  # a choice of two for 3 last tokens
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_critic_and_reference_choose_by_themselves(folder: Path, tuning: str) -> None:
    """What they say is bit for bit the same whatever is replayed, before and after a policy that replays."""
    module = built(folder, **TUNINGS[tuning])
    nn.init.normal_(module.value_head.weight)
    others_BSLk = (own_choice(module) + 1) % 4
    for role in (Role.CRITIC, Role.REFERENCE):
        with torch.no_grad():
            free, policy = asked(module, role), asked(module, Role.POLICY, others_BSLk)
            told = asked(module, role, others_BSLk)
        pairs = ((free, told),) if role is Role.CRITIC else zip(free, told, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert role is Role.CRITIC or not torch.equal(policy.logprobs_RV, told.logprobs_RV)


def test_a_block_computes_the_replayed_experts(folder: Path) -> None:
    """A block's output at [row, position] is sum_k g_k E_k(x) over the replayed experts, g their softmax among themselves,
    and where nothing is told, the output of its own choice."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    block = model.model.layers[1].mlp
    x_BSD = torch.randn(2, 5, 64)
    chosen_BSLk = torch.randint(0, 4, (2, 5, 2, 1)).to(torch.int16).expand(2, 5, 2, 2).clone()
    chosen_BSLk[..., 1] = (chosen_BSLk[..., 0] + 1 + torch.randint(0, 3, (2, 5, 2))) % 4
    chosen_BSLk[1, 3:] = FREE
    replay = RouterReplay(model)
    with torch.no_grad():
        own_BSD = block(x_BSD)
        replay.tell(chosen_BSLk)
        told_BSD = block(x_BSD)
        for row in range(2):
            for position in range(3 if row else 5):
                x_D, pair = x_BSD[row, position], chosen_BSLk[row, position, 1].long()
                weights = (block.gate.weight[pair] @ x_D).softmax(0)
                wanted_D = torch.zeros(64)
                for weight, expert in zip(weights, pair, strict=True):
                    gate, up = (block.experts.gate_up_proj[expert] @ x_D).chunk(2)
                    wanted_D += weight * (block.experts.down_proj[expert] @ (silu(gate) * up))
                torch.testing.assert_close(told_BSD[row, position], wanted_D, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        told_BSD[1, 3:], own_BSD[1, 3:], rtol=1e-5, atol=1e-6
    )  # groups of other sizes round otherwise
    assert (told_BSD[:, :3] - own_BSD[:, :3]).abs().max() > 1e-3
    replay.tell(None)
    assert torch.equal(block(x_BSD), own_BSD)


def said(prompt: int, reply: int, experts: np.ndarray | None) -> ScoredRollout:
    """An engine's output as a scored rollout."""
    entries = [{token: SimpleNamespace(logprob=-1.0)} for token in range(reply)]
    spans = [SimpleNamespace(version="0", start=0, end=reply)]
    completion = SimpleNamespace(
        token_ids=list(range(reply)),
        logprobs=entries,
        weight_versions=spans,
        routed_experts=experts,
        finish_reason="stop",
    )
    output: Any = SimpleNamespace(outputs=[completion])
    return ScoredRollout(_rollout(Prompt("p", tuple(range(prompt)), ()), 0, output, "", {}), Score(0.5))


def test_what_the_engine_chose_stands_at_its_tokens() -> None:
    """Experts of the engine's output stand at [row, position] of the batch, for every token but a row's last; a reply without
    them, and pads, are left to the router; packed rows keep theirs; where no engine says any there are no layers."""
    generator = np.random.default_rng(0)
    told = generator.integers(0, 8, (7, 3, 2)).astype(np.uint8), generator.integers(0, 300, (4, 3, 2)).astype(np.uint16)
    batch = collate([said(5, 3, told[0]), said(2, 3, told[1]), said(4, 2, None)])
    assert batch.experts_BSLk.shape == (3, 8, 3, 2)
    for row, experts in enumerate(told):
        count = len(experts)
        assert np.array_equal(batch.experts_BSLk[row, :count].numpy(), experts)
        assert (batch.experts_BSLk[row, count:] == FREE).all()
    assert (batch.experts_BSLk[2] == FREE).all()
    part = lay_out(batch, [(2, 1)], sizes_of(batch))
    assert (
        torch.equal(part.experts_RWLk[0, 6:11], batch.experts_BSLk[1, :5]) and (part.experts_RWLk[0, :6] == FREE).all()
    )
    assert collate([said(5, 3, None)]).experts_BSLk.shape == (1, 8, 0, 0)
    assert said(5, 3, None).rollout.routing is NO_ROUTING


def test_a_choice_for_too_few_tokens_is_a_broken_contract() -> None:
    """An engine that says the experts of another number of tokens than it read is caught at once."""
    short = Rollout(Prompt("p", (1, 2), ()), 0, (3, 4), (-1.0, -1.0), (VersionSpan(0, 0, 2),), "", Finish.STOPPED,
                    routing=Routing((2, 1, 2), bytes(8)))  # fmt: skip
    with pytest.raises(AssertionError):
        collate([ScoredRollout(short, Score(0.5))])
    with pytest.raises(AssertionError):
        Routing((2, 1, 2), bytes(4))


def test_replay_is_refused_where_nobody_says_the_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs, and for a dense model, the error names the setting and what to do; on CUDA the engine is told to say them."""
    config = RolloutConfig(router_replay=True)
    monkeypatch.setattr(rollout.fleet, "has_gpus", lambda: False)
    with pytest.raises(
        ValueError, match=r"rollout.router_replay must be false.*CPUs.*set rollout.router_replay = false"
    ):
        rollout.fleet.engine_spec(config, "m", "", "bfloat16", (2,))
    assert not rollout.fleet.engine_spec(RolloutConfig(), "m", "", "bfloat16", (2,)).router_replay
    monkeypatch.setattr(rollout.fleet, "has_gpus", lambda: True)
    spec = rollout.fleet.engine_spec(config, "m", "", "bfloat16", (2,))
    assert spec.router_replay and spec.environment["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    dense = quick_recipe(save_tiny(tmp_path / "m", "mistral"), tmp_path, rollout__router_replay=True)
    with pytest.raises(ValueError, match=r"rollout.router_replay must be false.*is a mistral"):
        check_input(dense, load(CorpusConfig()))


def test_a_margin_is_the_closest_choice_of_a_row(folder: Path) -> None:
    """`router_margin_R` is, by brute force over a row's real tokens and every layer, the smallest distance in log-prob between
    the last expert that was chosen and the best of the others; pads count for nothing, and a dense model has none."""
    module = built(folder, **TUNINGS["full"])
    logits: list[Tensor] = []
    hooks = [gate.register_forward_hook(lambda *call: logits.append(call[2][0].detach())) for gate in routers(module)]
    told = asked(module)
    for hook in hooks:
        hook.remove()
    for row, length in enumerate(LENGTHS_B.tolist()):
        closest = float("inf")
        for layer in logits:
            for token in layer.view(*TOKENS_BS.shape, -1)[row, :length]:
                _, second, third, *_ = sorted(token.double().log_softmax(-1).tolist(), reverse=True)
                closest = min(closest, second - third)
        assert told.router_margin_R[row].item() == pytest.approx(closest, rel=1e-3)
    assert asked(module, Role.REFERENCE).router_margin_R.tolist() == [float("inf")] * 3
