"""One frozen base in three roles against three models of their own with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import inject_adapter_in_model
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from cluster.settings import load
from rl.config import LoraConfig, ModelConfig, PpoRecipe
from rl.policy import ActorCritic, Role, Rows, lora_config, token_stats
from tests.tiny import EXPERTS, RECIPES, TARGETS, save_tiny

ROWS, WIDTH = 3, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "mixtral")


class Case(NamedTuple):
    """The shared module, separate models with the weights of each role, and what they are asked."""

    shared: ActorCritic
    policy: PreTrainedModel
    critic: PreTrainedModel
    reference: PreTrainedModel
    rows: Rows


@pytest.fixture(params=[(), EXPERTS], ids=["attention", "attention and experts"])
def case(request: pytest.FixtureRequest, folder: Path) -> Iterator[Case]:
    """Adapters far from zero, of either role its own."""
    lora = LoraConfig(rank=4, targets=TARGETS["mixtral"], target_parameters=request.param)
    torch.manual_seed(3)
    shared = ActorCritic(ModelConfig(tuning="lora", dtype="float32", lora=lora), lambda: loaded(folder))
    with torch.no_grad():
        for parameters in shared.trainable().values():
            for parameter in parameters:
                parameter.normal_(std=0.2)
    policy, critic = (adapted(folder, lora, shared, role) for role in (Role.POLICY, Role.CRITIC))
    lengths_B = torch.tensor([WIDTH, WIDTH - 3, WIDTH - 9])
    positions_T = torch.arange(1, WIDTH)
    mask_BT = (positions_T >= 6) & (positions_T < lengths_B[:, None])
    positions_BS = torch.arange(WIDTH).repeat(ROWS, 1)
    count_BS = (positions_BS < lengths_B[:, None]).long()
    tokens_BS = torch.randint(5, 500, (ROWS, WIDTH)) * count_BS
    yield Case(shared, policy, critic, loaded(folder), Rows(tokens_BS, positions_BS, None, count_BS, mask_BT))


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()


def adapted(folder: Path, lora: LoraConfig, shared: ActorCritic, role: Role) -> PreTrainedModel:
    """A model of its own with one adapter, which holds what the shared module's has in `role`."""
    model = loaded(folder).requires_grad_(False)
    inject_adapter_in_model(lora_config(lora, model), model, role.value)
    held = dict(shared.policy.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(held[name])
    return model


def loss(stats_BT: Tensor, values_BS: Tensor) -> Tensor:
    """Something that every log-prob and every value moves."""
    weights_BT = torch.linspace(-1, 2, stats_BT.numel()).view_as(stats_BT)
    return (weights_BT * stats_BT).sum() + (values_BS**2).sum()


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_three_roles_are_three_models(case: Case) -> None:
    """Policy log-probs and entropies, values and reference log-probs of the shared base are bit for bit those of three
    models that hold each role's weights alone; so are the gradients of both adapters and the value head, in whatever order
    the roles are asked; and the base gets none."""
    shared, asked = case.shared, (case.rows, 0.7)
    own_policy = token_stats(case.policy, *asked)
    assert shared.value_head is not None
    hidden_BSD = case.critic.base_model(input_ids=case.rows.tokens_RW, use_cache=False).last_hidden_state
    own_values_BS = shared.value_head(hidden_BSD).squeeze(-1)
    with torch.no_grad():
        own_reference = token_stats(case.reference, *asked, only_logprobs=True)
    loss(own_policy.logprobs_RV, own_values_BS).backward()
    wanted = adapters(case.policy) | adapters(case.critic)
    head = shared.value_head.weight.grad
    shared.zero_grad()
    for order in ((Role.POLICY, Role.CRITIC, Role.REFERENCE), (Role.REFERENCE, Role.CRITIC, Role.POLICY)):
        told = {role: shared(role, *asked) for role in order}
        policy, values_BS, reference = told[Role.POLICY], told[Role.CRITIC], told[Role.REFERENCE]
        for one, other in zip(
            (*policy, *reference, values_BS), (*own_policy, *own_reference, own_values_BS), strict=True
        ):
            assert torch.equal(one, other)
        loss(policy.logprobs_RV, values_BS).backward()
        found = {name.removeprefix("policy."): grad for name, grad in adapters(shared).items()}
        found_head = found.pop("value_head.weight"), found.pop("value_head.bias")
        assert head is not None and torch.equal(found_head[0], head)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert all(bool(grad.any()) for grad in found.values())
        shared.zero_grad()
    assert not torch.equal(own_policy.logprobs_RV, own_reference.logprobs_RV)


def test_an_adapter_is_a_change_of_weights(case: Case) -> None:
    """The policy's log-probs are those of a plain model whose weights are W + (alpha / rank) * B A, expert by expert."""
    config = case.shared.lora
    assert config is not None
    plain, held = case.reference, dict(case.policy.named_parameters())
    scale = config.alpha / config.rank
    with torch.no_grad():
        for number, layer in enumerate(plain.model.layers):
            at = f"model.layers.{number}"
            for name in config.targets:
                a_RI, b_OR = (held[f"{at}.self_attn.{name}.lora_{ab}.policy.weight"] for ab in "AB")
                layer.self_attn.get_submodule(name).weight += scale * b_OR @ a_RI
            wrappers = {
                m.parameter_name: m for m in case.policy.get_submodule(at).modules() if isinstance(m, ParamWrapper)
            }
            for name in config.target_parameters:
                stack = name.rpartition(".")[2]
                a_XI, b_OX = (wrappers[stack].get_submodule(f"lora_{ab}.policy").weight for ab in "AB")
                weight_EOI = getattr(layer.mlp.experts, stack)
                experts, rank = weight_EOI.shape[0], config.rank
                for e in range(experts):
                    weight_EOI[e] += scale * b_OX[:, e::experts] @ a_XI[e * rank : (e + 1) * rank]
        asked = (case.rows, 1.0)
        merged, live = (token_stats(m, *asked).logprobs_RV for m in (plain, case.policy))
    assert (merged - live).abs().max() < 1e-4
    assert live.abs().max() > 1


def test_a_stack_that_is_not_there_is_named(folder: Path) -> None:
    """Target parameters that the model has not: the error names the setting, the model and the stacks it has."""
    with torch.device("meta"):
        dense = MistralForCausalLM(MistralConfig(num_hidden_layers=1, vocab_size=8))
    for model, stacks in (
        (loaded(folder), "experts.down_proj, experts.gate_up_proj$"),
        (dense, "none: leave the setting empty$"),
    ):
        lora = LoraConfig(targets=TARGETS["mixtral"], target_parameters=("experts.w1",))
        with pytest.raises(ValueError, match=rf"model.lora.target_parameters .*\['experts.w1'\].*{stacks}"):
            lora_config(lora, model)


@pytest.mark.parametrize("name", ["mistral_7b", "mixtral_8x7b"])
def test_the_large_recipes_share_one_base(name: str) -> None:
    """Mistral's and Mixtral's recipes train adapters, so that policy, critic and reference are one frozen base."""
    recipe = load(PpoRecipe, RECIPES / f"{name}.toml")
    assert recipe.model.tuning == "lora" and recipe.learner.zero_stage == 3
    with torch.device("meta"):
        tiny = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=1, num_local_experts=2, vocab_size=8)  # fmt: skip
        module = ActorCritic(recipe.model, lambda: MixtralForCausalLM(tiny))
    assert module.critic is None and module.reference is None
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name or name.startswith("value_head.") for name in trained)
