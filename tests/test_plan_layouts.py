"""`attune plan`: which devices hold what and when, how long a step is, which remedies fit, what the command says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.device_table import ACCELERATORS, GIB, parse_cluster
from cluster.settings import SettingsError, changed
from rl.__main__ import Exit, main
from rl.memory_model import Overheads, counts_of, rank_bytes
from rl.model_shape import KNOWN
from rl.plan import options
from rl.remedies import remedies
from rl.step_time import Assumptions, estimate
from tests.test_plan import MIXTRAL, planned, shipped

ROOT = Path(__file__).parents[1]


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
    weights that AdamW copies. Where gathers take time the critic costs more: its passes and the policy's ask for parameters in
    other orders, and DeepSpeed gathers none ahead."""
    gae, rloo, once = (
        planned(shipped("mistral_7b", **knobs), "4xA100-80GB")
        for knobs in (
            {},
            {"ppo__estimator": "rloo"},
            {"ppo__estimator": "grpo", "ppo__epochs": 1, "ppo__minibatches": 1},
        )
    )
    slow, quick, least = (estimate(plan, Assumptions(link_share=1e9)) for plan in (gae, rloo, once))
    assert quick.update == pytest.approx(slow.update / 2) and quick.annotate == pytest.approx(slow.annotate * 2 / 3)
    assert least.annotate == pytest.approx(slow.annotate / 3)
    updates = [plan.uses[0].phases["apply"]["update"] / plan.counts.trained for plan in (gae, rloo)]
    assert updates[1] == pytest.approx(2 * updates[0])
    slow, quick = (estimate(plan, Assumptions()) for plan in (gae, rloo))
    assert slow.update > 2.05 * quick.update


def test_ranks_over_several_nodes_gather_by_the_network() -> None:
    """Eight ranks on nodes of eight lie together, beside one engine or two on the other node; with an engine more than that
    holds, one lies among them. Colocated ranks are where their engines are."""
    two, many = (
        planned(shipped("mixtral_8x7b", rollout__engines=engines), "8xH100-80GB", nodes=2) for engines in (2, 3)
    )
    assert two.ranks_together and not many.ranks_together
    assert estimate(many, Assumptions()).update > 3 * estimate(two, Assumptions()).update
    near = {"placement__mode": "colocated", "learner__ranks": 16, "rollout__engines": 4}
    assert not planned(shipped("mixtral_8x7b", **near), "8xH100-80GB", nodes=2).ranks_together


def test_sleep_takes_host_memory_and_time() -> None:
    """Mixtral's 93 GB for each of two engines of four devices wait in a node's memory while the learner works, to and fro at
    `host_rate` a device; where a publish brings every weight they are dropped instead."""
    asleep, dropped = (
        planned(shipped("mixtral_8x7b", placement__mode="colocated", publish__what=what), "8xH100-80GB")
        for what in ("merged", "full")
    )
    assert asleep.asleep_bytes * 8 == pytest.approx(2 * 2 * MIXTRAL.parameters) and dropped.asleep_bytes == 0
    assert estimate(asleep, Assumptions()).sleep == pytest.approx(2 * asleep.asleep_bytes / 4e9)
    assert estimate(dropped, Assumptions()).sleep == 0


def test_an_adapter_stays_on_one_host() -> None:
    """It goes through the memory of rank 0's host: on two nodes the plan says so, and what fits instead."""
    apart = planned(shipped("mixtral_8x7b", publish__what="adapter"), "8xH100-80GB", nodes=2)
    assert not apart.fits and "16 devices are on several: set publish.what = merged" in apart.problems[0]
    near = {"placement__mode": "colocated", "publish__what": "adapter"}
    assert planned(shipped("mixtral_8x7b", **near), "8xH100-80GB").fits


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
    with pytest.raises(SettingsError, match="--node; did you mean --nodes"):
        options(["--node", "2"])
    assert main(["plan", "local", "--model.path", "/nonexistent"]) == Exit.WRONG_INPUT
    assert "is no folder, not in the hub's cache" in capsys.readouterr().err


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
