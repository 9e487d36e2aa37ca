"""`attune plan`: its numbers of parameters are those of real models, its bytes those that allocations show."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from cluster.device_table import parse_cluster
from cluster.settings import changed, load
from rl.activations import logits_bytes, pass_bytes
from rl.check_model import learner_counts
from rl.config import PpoRecipe, TinyConfig
from rl.layout_plan import LayoutPlan, lay_out
from rl.losses import entropy_bonus, policy_loss
from rl.memory_model import (
    CPU_OVERHEADS,
    Overheads,
    counts_of,
    largest_micro_batch,
    learner_phases,
    rank_bytes,
    trained_parts,
)
from rl.model_shape import KNOWN, ModelShape, find_shape, from_config
from rl.policy import ActorCritic, Role, Rows, TokenStats
from rl.recipe_files import find, job_of, recipe_type
from tests.live_bytes import peak_of
from tests.memory_case import Case, recipe_of

MIXTRAL = KNOWN["mixtral-8x7b"]
PUBLISHED = {  # counted from the published weights' headers, or computed by transformers from the published config.json
    "mixtral-8x7b": 46_702_792_704,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
}


def shipped(name: str, **knobs: Any) -> Any:
    """A shipped recipe; `knobs` are dotted names with __ for dots."""
    sample = {knob.replace("__", "."): value for knob, value in knobs.items()}
    return load(recipe_type(job_of(find(name))), find(name), sample=sample)


def planned(recipe: Any, devices: str, nodes: int = 1) -> LayoutPlan:
    shape, _ = find_shape(recipe.model.path, recipe.model.tiny)
    return lay_out(recipe, shape, parse_cluster(nodes, devices), Overheads())


def config_of(shape: ModelShape) -> PretrainedConfig:
    """transformers' config of `shape`."""
    if shape.family == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=shape.vocabulary, n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
            n_inner=shape.feed_forward, n_positions=shape.positions, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=None, eos_token_id=1,
        )  # fmt: skip
    sparse = (
        {"num_local_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token} if shape.experts else {}
    )
    return AutoConfig.for_model(
        "mixtral" if sparse else "mistral", vocab_size=shape.vocabulary, hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_size, max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied, sliding_window=None, **sparse,
    )  # fmt: skip


# -- numbers of parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    """The formula counts to the last parameter what transformers builds on the meta device, and what was published."""
    shape = KNOWN[name]
    config = config_of(shape)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == built.num_parameters()
    assert shape.parameters == PUBLISHED.get(name, shape.parameters)
    assert from_config(config.to_dict()) == shape


def test_active_parameters_of_mixtral() -> None:
    """A token multiplies with two experts of eight: 12.7e9 parameters without the embedding, as published (13e9 with it)."""
    assert MIXTRAL.active == pytest.approx(12.75e9, rel=0.01)
    assert MIXTRAL.active + 32000 * 4096 == pytest.approx(12.88e9, rel=0.002)


SMALL = {
    "mistral": ModelShape("llama", 300, 64, 2, 4, 2, 16, 96, 64),
    "mixtral": ModelShape("llama", 300, 64, 2, 4, 2, 16, 96, 64, experts=4, experts_per_token=2),
    "gpt2": ModelShape("gpt2", 300, 64, 2, 4, 4, 16, 256, 64, tied=True),
}
TARGETS = {"mistral": ["q_proj", "down_proj"], "mixtral": ["q_proj", "o_proj"], "gpt2": ["c_attn", "c_proj"]}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("tuning", ["full", "lora", "ia3", "ln", "bitfit", "prefix", "prompt"])
def test_what_a_learner_holds_and_trains_is_what_it_builds(name: str, tuning: str) -> None:
    """The counts are those of the learner's own module, for PPO and for every supervised tuning; both refuse the same."""
    shape, config = SMALL[name], config_of(SMALL[name])
    jobs = ["local", "sft_local"] if tuning in ("full", "lora") else ["sft_local"]
    for job in jobs:
        recipe = shipped(job, model__tuning=tuning, model__lora__targets=TARGETS[name], model__tiny__context=512)
        if name != "gpt2" and tuning == "bitfit":
            with pytest.raises(ValueError, match="nothing to train"):
                counts_of(recipe, shape)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held, trained = learner_counts(recipe.model, config)
        assert counts_of(recipe, shape)[1:] == (held, trained), job


def test_targets_that_are_not_there_are_refused() -> None:
    """Adapters on modules that the model has not are an error that names those it has."""
    recipe = shipped("local", model__tuning="lora", model__lora__targets=["query"])
    with pytest.raises(ValueError, match=r"query.*c_attn, c_fc, c_proj"):
        counts_of(recipe, SMALL["gpt2"])


def test_a_model_is_found_in_its_folder_then_in_the_table(tmp_path: Path) -> None:
    """A folder's config.json comes before any name; a hub id is looked up by name, whatever its owner and suffix."""
    folder = tmp_path / "gpt2"
    config_of(SMALL["mixtral"]).save_pretrained(folder)
    assert find_shape(str(folder), TinyConfig())[0] == SMALL["mixtral"]
    assert find_shape("mistralai/Mixtral-8x7B-Instruct-v0.1", TinyConfig())[0] == MIXTRAL
    assert find_shape("mistralai/Mistral-7B-Instruct-v0.3", TinyConfig())[0].vocabulary == 32768
    assert find_shape("mistralai/Mistral-7B-Instruct-v0.2", TinyConfig())[0].vocabulary == 32000
    assert find_shape("openai-community/gpt2-xl", TinyConfig())[0] == KNOWN["gpt2-xl"]
    with pytest.raises(ValueError, match=r"model\.path 'someone/else'.*mixtral-8x7b"):
        find_shape("someone/else", TinyConfig())


# -- bytes -----------------------------------------------------------------------------------------------------------

QUICK = {"prompt": 96, "rows": 3}
CASES = [
    Case("mistral", "full", **QUICK),
    Case("mistral", "lora", **QUICK, dtype="bfloat16", zero_stage=2),
    Case("mistral", "full", **QUICK, checkpointing=True),
    Case("mistral", "lora", vocabulary=16000, reply=96, prompt=32, layers=2),
    Case("mistral", "lora", vocabulary=16000, reply=96, prompt=32, layers=2, entropy=0.01),
    Case("mixtral", "full", **QUICK),
    Case("mixtral", "lora", **QUICK, checkpointing=True, dtype="bfloat16", zero_stage=2),
    Case("gpt2", "full", **QUICK),
    Case("gpt2", "lora", **QUICK, checkpointing=True),
    Case("mixtral", "lora", **QUICK, stacks=("experts.gate_up_proj", "experts.down_proj")),
    Case(
        "mixtral", "lora", **QUICK, stacks=("experts.gate_up_proj",), checkpointing=True, dtype="bfloat16", zero_stage=2
    ),
    Case("mixtral", "lora", rows=1, prompt=96, experts=8, stacks=("experts.down_proj",)),
    Case("mistral", "lora", prompt=700, packed=4),
    Case("mistral", "full", prompt=700, packed=4, checkpointing=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_activations_are_what_allocations_show(case: Case) -> None:
    """Forward and backward of the policy allocate what the formulas say, within 10 %, once the gradients are there."""
    shape = ModelShape(
        "gpt2" if case.shape == "gpt2" else "llama", case.vocabulary, case.hidden, case.layers, 4,
        4 if case.shape == "gpt2" else 2, case.hidden // 4, case.feed_forward, 512,
        experts=case.experts if case.shape == "mixtral" else 0, experts_per_token=2 if case.shape == "mixtral" else 0,
        tied=case.shape == "gpt2",
    )  # fmt: skip
    recipe: PpoRecipe = recipe_of(case, Path("nowhere"))
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    module = ActorCritic(
        recipe.model, lambda: AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype),
        entropy_gradient=case.entropy > 0,
    )  # fmt: skip
    rows, width = case.rows, case.prompt + case.reply
    tokens_BS = torch.randint(0, case.vocabulary, (rows, width))
    mask_BT = torch.zeros(rows, width - 1, dtype=torch.bool)
    mask_BT[:, case.prompt - 1 :] = True
    noise_BT, seen_RWW = torch.randn(rows, width - 1), None
    if case.packed:
        seen_RWW = torch.ones(rows, width, width, dtype=torch.bool).tril()

    def step() -> None:
        positions_BS = torch.arange(width).repeat(rows, 1)
        stats: TokenStats = module(
            Role.POLICY, Rows(tokens_BS, positions_BS, seen_RWW, torch.ones_like(tokens_BS), mask_BT), 1.0
        )
        loss = policy_loss(
            stats.logprobs_RV, stats.logprobs_RV.detach(), noise_BT, mask_BT, mask_BT.float(),
            tokens=100.0, clip_low=0.2, clip_high=0.2,
        ).loss  # fmt: skip
        (loss - case.entropy * entropy_bonus(stats.entropy_RV, mask_BT, tokens=100.0)).backward()

    step()
    width_bytes = {"float32": 4, "bfloat16": 2}[case.dtype]
    waiting, passing = pass_bytes(
        shape, trained_parts(recipe.model), rows * width, width=width_bytes, checkpointing=case.checkpointing,
        pairs=0 if seen_RWW is None else seen_RWW.numel(),
    )  # fmt: skip
    logits = logits_bytes(shape, rows * case.reply, entropy="learned" if case.entropy else "measured")
    predicted = waiting + max(passing, logits)
    assert predicted == pytest.approx(peak_of(step).rise, rel=0.1)


def test_adapters_on_experts_keep_whole_stacks() -> None:
    """PEFT folds B A into a stack: 2.8 GB of each of Mixtral's layers wait for the backward pass, or of one with checkpointing; a
    stack's gradient comes beside it. What a token adds is as without."""
    both = {"model__lora__target_parameters": list(MIXTRAL.stacks)}
    folded = 8 * (4096 * 2 * 14336 + 14336 * 4096) * 2
    gradient = 8 * 14336 * 4096 * 2  # of down_proj, or of gate_up_proj once down_proj's folded stack has gone
    for checkpointing, layers in ((True, 1), (False, 32)):
        knobs: dict[str, Any] = {"model__gradient_checkpointing": checkpointing, "learner__micro_batch": 1}
        plain, adapted = (
            planned(shipped("mixtral_8x7b", **knobs, **more), "8xH100-80GB", nodes=2) for more in ({}, both)
        )
        found, before = (plan.uses[0].phases["gradients"]["activations"] for plan in (adapted, plain))
        assert layers * folded < found - before < layers * folded + gradient + 32 * 1224 * 2 * 2 * 19000


def test_packed_rows_hold_more_trained_tokens_and_a_mask() -> None:
    """Four replies to each of 32 prompts over 8 ranks: 4 prompts of 1,024 tokens and 16 replies of 200 on each, in rows that may
    hold four replies; a text that is asked again and again packs all its replies behind one prompt. Prompts may be short: then
    replies fill the rows. Without packing no row has a mask."""
    recipe = shipped("mixtral_8x7b", learner__micro_batch_tokens=4096, prompts__fixed_share=0.0)
    family = 1023 + 4 * 201
    micro = largest_micro_batch(recipe)
    assert micro == (4096, 3200, 4096 * family, 4 * family * family)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 8192}))[:2] == (4 * family, 3200)
    fixed = largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 8192, "prompts.fixed_share": 0.25}))
    assert fixed.positions == 8 * 4 * 200 and fixed.pairs == 8192 * (1023 + 32 * 201)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 100}))[:2] == (1224, 1224)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 0})) == (2 * 1224, 2 * 200, 0, 0)


def test_parts_add_up_to_the_preflight_s_figure() -> None:
    """`attune check` and `attune plan` say the same of weights, gradients and optimizer: there is one model."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("mixtral_8x7b", {}),
        ("mistral_7b", {"model__tuning": "full"}),
        ("sft_mixtral_8x7b", {}),
    ]
    for name, knobs in cases:
        recipe = shipped(name, **knobs)
        shape, _ = find_shape(recipe.model.path, TinyConfig())
        counts = counts_of(recipe, shape)
        parts = learner_phases(recipe, shape, counts, CPU_OVERHEADS)["gradients"]
        kept = sum(parts.get(part, 0) for part in ("weights", "adapters", "gradients", "optimizer"))
        assert rank_bytes(recipe, counts) == int(kept)
