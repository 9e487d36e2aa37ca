"""`attune plan`: its numbers of parameters are those of real models, its bytes those that allocations show, its remedies fit."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from cluster.device_table import ACCELERATORS, GIB, parse_cluster
from cluster.settings import SettingsError, changed, load
from rl.__main__ import Exit, main
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
from rl.plan import options
from rl.policy import ActorCritic, Role, Rows, TokenStats
from rl.recipe_files import find, job_of, recipe_type
from rl.remedies import remedies
from rl.step_time import Assumptions, estimate
from tests.live_bytes import peak_of
from tests.memory_case import Case, recipe_of

ROOT = Path(__file__).parents[1]
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
    module = ActorCritic(recipe.model, lambda: AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype))
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
        (loss - 0.0 * entropy_bonus(stats.entropy_RV.detach(), mask_BT, tokens=100.0)).backward()

    step()
    width_bytes = {"float32": 4, "bfloat16": 2}[case.dtype]
    waiting, passing = pass_bytes(
        shape, trained_parts(recipe.model), rows * width, width=width_bytes, checkpointing=case.checkpointing,
        pairs=0 if seen_RWW is None else seen_RWW.numel(),
    )  # fmt: skip
    logits = logits_bytes(shape, rows * case.reply, scored=True)
    predicted = waiting + max(passing + logits.kept, logits.peak)
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
    assert micro == (4096, 3200, True, 4096 * family, 4 * family * family)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 8192}))[:3] == (4 * family, 3200, False)
    fixed = largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 8192, "prompts.fixed_share": 0.25}))
    assert fixed.positions == 8 * 4 * 200 and fixed.pairs == 8192 * (1023 + 32 * 201)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 100}))[:2] == (1224, 1224)
    assert largest_micro_batch(changed(recipe, {"learner.micro_batch_tokens": 0})) == (2 * 1224, 2 * 200, True, 0, 0)


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


# -- layouts, remedies, the command ----------------------------------------------------------------------------------


def planned(recipe: Any, devices: str, nodes: int = 1) -> LayoutPlan:
    shape, _ = find_shape(recipe.model.path, recipe.model.tiny)
    return lay_out(recipe, shape, parse_cluster(nodes, devices), Overheads())


def test_the_shipped_recipes_fit_where_they_say() -> None:
    """Mixtral on two nodes of eight 80 GB devices, and on one with engines beside ranks; Mistral on one of four."""
    assert planned(shipped("mixtral_8x7b"), "8xH100-80GB", nodes=2).fits
    assert not planned(shipped("mixtral_8x7b"), "8xH100-80GB").fits
    assert planned(shipped("mixtral_8x7b", placement__mode="colocated"), "8xH100-80GB").fits
    assert planned(shipped("mistral_7b"), "4xA100-80GB").fits
    assert planned(shipped("sft_mixtral_8x7b"), "8xH100-80GB").fits
    assert planned(shipped("local"), "4xRTX4090").fits


def test_full_tuning_of_mixtral_fits_nowhere_near() -> None:
    """Its states alone are 18 bytes a parameter of policy and critic: 8 devices of 80 GB hold a third."""
    plan = planned(shipped("mixtral_8x7b", model__tuning="full"), "8xH100-80GB", nodes=2)
    optimizer = plan.uses[0].phases["gradients"]["optimizer"]
    assert not plan.fits and optimizer == pytest.approx(2 * 46.7e9 * 12 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("name", "devices", "knobs"),
    [
        ("mistral_7b", "4xRTX4090", {"model__gradient_checkpointing": False}),
        ("mistral_7b", "4xA100-40GB", {"learner__micro_batch": 16, "model__gradient_checkpointing": False}),
        ("mistral_7b", "4xA100-80GB", {"model__tuning": "full"}),
        ("mixtral_8x7b", "8xH100-80GB", {}),
        ("sft_mistral_7b", "2xA100-40GB", {"model__gradient_checkpointing": False}),
    ],
)
def test_what_is_advised_fits(name: str, devices: str, knobs: dict[str, Any]) -> None:
    """A plan that does not fit gets remedies, and every one of them, tried by itself, fits."""
    failed = planned(shipped(name, **knobs), devices)
    found = remedies(failed, lambda recipe: planned(recipe, devices))
    assert not failed.fits and found
    for remedy in found:
        assert planned(changed(failed.recipe, remedy.changes), devices).fits, remedy.words()


def test_an_engine_that_sleeps_gives_its_memory_to_the_rank_beside_it() -> None:
    """Colocated, a phase holds the sum of both roles; while gradients are computed the engine's cache and weights are not there,
    unless it never sleeps. Mixed, devices are of that kind and of the engines' own, which publishes reach by a way of their own."""
    apart = planned(shipped("mixtral_8x7b"), "8xH100-80GB", nodes=2)
    colocated = planned(shipped("mixtral_8x7b", placement__mode="colocated"), "8xH100-80GB")
    (use,) = colocated.uses
    learner = apart.uses[0]
    beside = sum(use.phases["gradients"].values()) - sum(learner.phases["gradients"].values())
    assert beside == pytest.approx(Overheads().context + Overheads().graphs)  # vLLM keeps its graphs
    assert use.phases["rollout"]["engine's weights"] == pytest.approx(MIXTRAL.parameters * 2 / 4)
    assert use.phases["publish"].get("KV cache", 0) == 0 < use.phases["rollout"]["KV cache"]
    (awake,) = planned(shipped("mixtral_8x7b", placement__mode="colocated", placement__sleep=False), "8xH100-80GB").uses
    assert awake.phases["gradients"]["KV cache"] == use.phases["rollout"]["KV cache"]
    mixed = planned(shipped("mixtral_8x7b", placement__mode="mixed", rollout__engines=3), "8xH100-80GB", nodes=2)
    expected = ((use.kind, 8, use.phases), ("engine", 4, apart.uses[1].phases))
    assert tuple((found.kind, found.count, found.phases) for found in mixed.uses) == expected
    ways = [estimate(plan, Assumptions()) for plan in (apart, colocated, mixed)]
    assert ways[2].publish_bytes == ways[0].publish_bytes + ways[1].publish_bytes
    assert ways[2].publish > max(ways[0].publish, ways[1].publish)


def test_a_publish_s_probe_and_a_save_find_the_engines_awake() -> None:
    """The probe gathers weights and reads its rows beside an engine with its cache, and nothing sleeps before a save. Engines with
    devices of their own take a publish beside their budget: two buffers, and what they load anew; an adapter alone neither."""
    (use,) = planned(shipped("mixtral_8x7b", placement__mode="colocated"), "8xH100-80GB").uses
    probe, save = use.phases["probe"], use.phases["save"]
    assert use.peak_phase == "probe" and probe["gathers"] == 6e9 and probe["KV cache"] == save["KV cache"] > 0
    assert save["gathers"] == save["export"] == 2 * (MIXTRAL.attention + MIXTRAL.feed_forward_block)
    engine = planned(shipped("mixtral_8x7b"), "8xH100-80GB", nodes=2).uses[1]
    beside = sum(engine.phases["publish"].values()) - sum(engine.phases["rollout"].values())
    assert beside == pytest.approx(2 * 2**30 + 2 * MIXTRAL.attention)
    alone = planned(shipped("mistral_7b", publish__what="adapter"), "4xA100-80GB").uses[1]
    assert sum(alone.phases["publish"].values()) == sum(alone.phases["rollout"].values())


def test_tensor_parallel_groups_are_placed_on_nodes() -> None:
    """Three groups of four: two nodes of six devices count twelve, and have room for one group each; three nodes of four fit."""
    knobs: dict[str, Any] = {
        "placement__mode": "colocated", "rollout__tensor_parallel": 4, "rollout__engines": 3, "learner__ranks": 12,
        "prompts__per_step": 48,
    }  # fmt: skip
    recipe = shipped("mixtral_8x7b", **knobs)
    crowded = planned(recipe, "6xH200-141GB", nodes=2)
    assert crowded.uses[0].count == 12 == crowded.cluster.devices and not crowded.fits
    assert "3 tensor-parallel groups of 4" in crowded.problems[0] and "divisor of 6" in crowded.problems[0]
    assert planned(recipe, "4xH200-141GB", nodes=3).fits
    apart = shipped("mixtral_8x7b", rollout__engines=2, learner__ranks=4)  # single ranks take what groups leave
    assert planned(apart, "6xH200-141GB", nodes=2).fits


def test_the_cache_of_a_plan_is_the_smallest() -> None:
    """Where engines share some devices and have others of their own, the crowded ones bound a wave."""
    mixed = planned(shipped("mixtral_8x7b", placement__mode="mixed", rollout__engines=3), "8xH100-80GB", nodes=2)
    own, shared = replace(mixed, uses=mixed.uses[::-1]), mixed.uses[0].cache
    assert own.cache == mixed.cache == shared != mixed.uses[1].cache


def test_a_small_cache_bounds_the_replies_and_costs_waves() -> None:
    """Half a GiB of cache holds 4,096 tokens of Mistral, 128 KiB each: 3 replies of 1,224 at once, so 64 replies take 22 waves."""
    plan = planned(shipped("mistral_7b", rollout__kv_cache_gb=0.5), "4xA100-80GB")
    assert plan.cache is not None and (plan.cache.tokens, plan.cache.replies) == (4096, 3)
    roomy = planned(shipped("mistral_7b"), "4xA100-80GB")
    step, quick = estimate(plan, Assumptions()), estimate(roomy, Assumptions())
    assert (step.waves, quick.waves) == (22, 1) and step.rollout > 5 * quick.rollout


def test_a_publish_with_adapters_moves_attention_alone() -> None:
    """Adapters on attention: 1.34e9 parameters of Mixtral's 46.7e9 are sent, in a 35th of the bytes."""
    lora = estimate(planned(shipped("mixtral_8x7b"), "8xH100-80GB", nodes=2), Assumptions())
    full = estimate(planned(shipped("mixtral_8x7b", model__tuning="full"), "8xH100-80GB", nodes=2), Assumptions())
    assert lora.publish_bytes == 32 * MIXTRAL.attention * 2 == pytest.approx(2.68e9, rel=0.01)
    assert full.publish_bytes / lora.publish_bytes == pytest.approx(34.8, rel=0.01) and full.publish > lora.publish


def test_a_publish_sends_what_the_recipe_says() -> None:
    """Adapters on experts are merged into their stacks, which go with the router; `full` sends every weight, `adapter` its own."""

    def sent(name: str, **knobs: Any) -> float:
        return estimate(planned(shipped(name, **knobs), "8xH100-80GB", nodes=2), Assumptions()).publish_bytes

    experts = sent("mixtral_8x7b", model__lora__target_parameters=["experts.down_proj"])
    assert experts == 32 * 2 * (MIXTRAL.attention + MIXTRAL.feed_forward_block)
    assert sent("mixtral_8x7b", publish__what="full") == 2 * MIXTRAL.parameters
    assert sent("mistral_7b", publish__what="adapter") == 2 * KNOWN["mistral-7b-v0.3"].adapter(
        shipped("mistral_7b").model.lora
    )


def test_an_estimator_without_critic_costs_no_critic() -> None:
    """Half the update's passes, two roles of three to annotate (one where the update says its own log-probs), and one group of
    weights that AdamW copies."""
    gae, rloo, once = (
        planned(shipped("mistral_7b", **knobs), "4xA100-80GB")
        for knobs in (
            {},
            {"ppo__estimator": "rloo"},
            {"ppo__estimator": "grpo", "ppo__epochs": 1, "ppo__minibatches": 1},
        )
    )
    slow, quick, least = (estimate(plan, Assumptions()) for plan in (gae, rloo, once))
    assert quick.update == pytest.approx(slow.update / 2) and quick.annotate == pytest.approx(slow.annotate * 2 / 3)
    assert least.annotate == pytest.approx(slow.annotate / 3)
    updates = [plan.uses[0].phases["apply"]["update"] / plan.counts.trained for plan in (gae, rloo)]
    assert updates[1] == pytest.approx(2 * updates[0])


def test_packed_replies_take_less_time() -> None:
    """A prompt goes through the model once for four replies; large micro-batches gather weights less often."""
    plain, packed = (
        estimate(
            planned(shipped("mixtral_8x7b", learner__micro_batch_tokens=tokens), "8xH100-80GB", nodes=2), Assumptions()
        )
        for tokens in (0, 8192)
    )
    assert packed.annotate < plain.annotate / 2 and packed.update < plain.update


def test_devices_are_read_or_refused_with_the_known_ones() -> None:
    """A table's name, a name with its memory, and what is neither."""
    cluster = parse_cluster(2, "8xh100-80gb")
    assert (cluster.devices, cluster.device) == (16, ACCELERATORS["H100-80GB"])
    assert 79 * GIB < cluster.device.memory < 80 * GIB  # CUDA reports less than the name says
    own = parse_cluster(1, "4xMI300X:192GB")
    assert (own.per_node, own.device.memory, own.device.flops) == (4, 192 * GIB, ACCELERATORS["L40S"].flops)
    for wrong in ("8xH1000", "0xB200", "x", "8x"):
        with pytest.raises(ValueError, match=r"--devices.*A100-80GB, H100-80GB"):
            parse_cluster(1, wrong)
    with pytest.raises(ValueError, match="--nodes"):
        parse_cluster(0, "B200")


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where it fits, 5 where not, with what to change, 2 for what it cannot read; settings override."""
    assert main(["plan", "mixtral_8x7b", "--nodes", "2"]) == Exit.DONE
    assert "verdict    fits" in capsys.readouterr().out
    assert main(["plan", "mixtral_8x7b", "--devices", "8xH100-80GB"]) == Exit.DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "problem    it takes 16 devices" in said and "fits with  --placement.mode colocated" in said
    assert main(["plan", "mixtral_8x7b", "--learner.ranks", "4", "--rollout.engines", "1"]) == Exit.DONE
    assert main(["plan", "sft_mistral_7b", "--devices", "2xL40S"]) == Exit.DONE
    assert main(["plan", "mixtral_8x7b", "--devices", "8xABACUS"]) == Exit.WRONG_INPUT
    assert "ABACUS" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="--nodes"):
        options(["--nodes", "two"])


def test_a_plan_needs_no_torch() -> None:
    """The whole command runs, and neither torch nor transformers is imported."""
    code = (
        "import sys; from rl.__main__ import main; main(['plan', 'mixtral_8x7b']); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120).returncode == 0


def test_more_tokens_and_rows_take_more() -> None:
    """Activations grow with the micro-batch in proportion; more ranks under ZeRO-3 shrink what a rank keeps."""
    recipe = shipped("mixtral_8x7b")
    one, two = (planned(changed(recipe, {"learner.micro_batch": rows}), "8xB200", nodes=2) for rows in (2, 4))
    grown = [plan.uses[0].phases["gradients"]["activations"] for plan in (one, two)]
    assert grown[1] == pytest.approx(2 * grown[0])
    counts = counts_of(recipe, MIXTRAL)
    wider = replace(recipe, learner=replace(recipe.learner, ranks=16))
    assert rank_bytes(wider, counts) == pytest.approx(rank_bytes(recipe, counts) / 2)
