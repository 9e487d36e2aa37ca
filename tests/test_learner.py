"""The learner on real ranks under real ZeRO: what must not matter does not, and what must be caught is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from cluster.placement import Claim, Placement, connect
from rewards.types import Score, ScoredRollout
from rl.batch import Batch, collate
from rl.config import PpoRecipe
from rl.endings import NonFiniteLoss
from rl.fleet import FLEET, LearnerFleet
from rl.micro_batches import deal_rows, sizes_of
from rl.ppo_config import Estimator
from rollout.types import Finish, Prompt, Rollout, VersionSpan
from tests.ranks import learner_of
from tests.tiny import EXPERTS, TARGETS, quick_recipe, save_tiny

pytestmark = pytest.mark.slow
PROBES = [(tuple(range(10, 30)), tuple(range(40, 60))), (tuple(range(300, 340)), tuple(range(7, 20)))]
FLEETS: dict[int, LearnerFleet] = {}  # by ranks


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect()
    yield
    FLEETS.clear()
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "mixtral")


def some_batch(rows: int = 8, seed: int = 0, n: int = 1) -> Batch:
    """Replies of different lengths with made-up log-probs and scores, `n` to a prompt; one in four cut by the budget."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(5, 500, (length,), generator=generator).tolist())

    scored = []
    for row in range(rows):
        reply = ids(3, 16)
        if row % n == 0:
            prompt = Prompt(f"p{row // n}", ids(4, 40), ())
        logprobs = tuple((-torch.rand(len(reply), generator=generator)).tolist())
        finish = Finish.TRUNCATED if row % 4 == 0 else Finish.STOPPED
        rollout = Rollout(prompt, 0, reply, logprobs, (VersionSpan(0, 0, len(reply)),), "", finish)
        scored.append(ScoredRollout(rollout, Score(float(torch.rand(1, generator=generator)))))
    return collate(scored)


def fleet_of(recipe: PpoRecipe, folder: Path) -> LearnerFleet:
    """A fleet as if new; one that a test breaks must not be asked for afterwards."""
    ranks = recipe.learner.ranks
    placement = Placement([Claim(FLEET, ranks, 0.1)]) if ranks not in FLEETS else None
    FLEETS[ranks] = learner_of(recipe, FLEETS.get(ranks), placement, PROBES, folder / "diverged")
    return FLEETS[ranks]


def trained(
    recipe: PpoRecipe, batch: Batch, folder: Path, *, updates: int = 2
) -> tuple[dict[str, float], list[list[float]]]:
    """Metrics of the first update, and the policy's log-probs of fixed replies after `updates` of them."""
    fleet = fleet_of(recipe, folder)
    first = fleet.update(fleet.annotate(batch)).metrics
    for _ in range(updates - 1):
        fleet.update(fleet.annotate(batch))
    return dict(first), fleet.log_probs(PROBES)


def lora_recipe(model: Path, runs: Path, experts: tuple[str, ...], **knobs: Any) -> PpoRecipe:
    """Adapters on attention, and on `experts`."""
    return quick_recipe(model, runs, model__tuning="lora", model__lora__targets=TARGETS["mixtral"],
                        model__lora__target_parameters=experts, **knobs)  # fmt: skip


def close(one: list[list[float]], other: list[list[float]], tolerance: float) -> None:
    gap = max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
    assert gap < tolerance, gap


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[list[float]]]:
    """One rank, one micro-batch, no ZeRO: the plainest way to make the same updates."""
    recipe = quick_recipe(model, tmp_path_factory.mktemp("whole"), learner__ranks=1, learner__zero_stage=0,
                          learner__micro_batch=8, ppo__minibatches=1)  # fmt: skip
    return trained(recipe, some_batch(), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("ranks", "stage", "micro", "tokens"),
    [
        *[(2, 0, 4, 0), (2, 1, 4, 0), (2, 2, 2, 0), (2, 3, 4, 0), (2, 3, 1, 0), (1, 2, 3, 0)],
        *[(1, 0, 1, 120), (2, 3, 1, 1), (2, 2, 1, 70)],
    ],
)
def test_updates_do_not_depend_on_how_the_batch_is_cut(
    model: Path,
    tmp_path: Path,
    whole: tuple[dict[str, float], list[list[float]]],
    ranks: int,
    stage: int,
    micro: int,
    tokens: int,
) -> None:
    """Two PPO steps give the same policy, losses and gradient norms whatever the sharding of rows (ranks), of states
    (ZeRO 0-3), the accumulation, and the padding or packing of micro-batches, to rounding."""
    recipe = quick_recipe(model, tmp_path, learner__ranks=ranks, learner__zero_stage=stage, learner__micro_batch=micro,
                          learner__micro_batch_tokens=tokens, ppo__minibatches=1)  # fmt: skip
    metrics, logprobs = trained(recipe, some_batch(), tmp_path)
    for name, value in whole[0].items():
        if name not in ("learner/peak_memory_bytes",):
            assert metrics[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    close(logprobs, whole[1], 1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_many_micro_batches_add_up_in_bfloat16(model: Path, tmp_path: Path, stage: int) -> None:
    """The gradient of a reply's mean loss is that of 300 copies of it in as many micro-batches: a sum in bfloat16 would stand still
    half way, where a share is less than its last bit."""
    prompt, reply = Prompt("p", tuple(range(5, 15)), ()), tuple(range(20, 24))
    rollout = Rollout(prompt, 0, reply, (-1.0,) * 4, (VersionSpan(0, 0, 4),), "", Finish.STOPPED)
    one = ScoredRollout(rollout, Score(0.9))
    norms = []
    for copies in (1, 300):
        recipe = quick_recipe(
            model, tmp_path, learner__ranks=1, learner__zero_stage=stage, learner__micro_batch=1, model__dtype="bfloat16",
            ppo__epochs=1, ppo__minibatches=1, ppo__whiten=False,
        )  # fmt: skip
        norms.append(trained(recipe, collate([one] * copies), tmp_path, updates=1)[0]["policy/grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.03)


def test_a_rank_without_replies_takes_part(model: Path, tmp_path: Path) -> None:
    """Five replies on two ranks, one a micro-batch: the second rank's third has none. The updates are those of one rank."""
    batch, told = some_batch(rows=5), []
    dealt = deal_rows(sizes_of(batch), range(5), ranks=2, micro_batch=1, tokens=0)
    assert [[len(part) for part in rank] for rank in dealt] == [[1, 1, 1], [1, 1, 0]]
    for ranks, micro in ((1, 8), (2, 1)):
        recipe = quick_recipe(model, tmp_path, learner__ranks=ranks, learner__micro_batch=micro, ppo__minibatches=1)
        told.append(trained(recipe, batch, tmp_path))
    (whole, logprobs), (metrics, other_logprobs) = told
    for name in ("policy/loss", "value/loss", "policy/grad_norm", "policy/kl", "policy/balance_loss"):
        assert metrics[name] == pytest.approx(whole[name], rel=2e-4, abs=2e-5), name
    close(other_logprobs, logprobs, 1e-4)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_without_a_critic_updates_are_those_of_the_plain_loss(
    model: Path, tmp_path: Path, estimator: Estimator
) -> None:
    """One update under two ranks, ZeRO-2 and packing moves the policy as the estimator's own formula does, written out reply by
    reply and optimised by torch alone; nothing is said of a critic."""
    recipe = quick_recipe(
        model, tmp_path, ppo__estimator=estimator, ppo__epochs=1, ppo__minibatches=1, ppo__policy_lr=1e-2,
        ppo__kl_target=None, ppo__importance_cap=None, ppo__balance_coef=0.0, ppo__lr_warmup=0, learner__micro_batch_tokens=60,
    )  # fmt: skip
    metrics, logprobs = trained(recipe, some_batch(n=2), tmp_path, updates=2)
    assert not any(name.startswith("value/") for name in metrics)
    assert metrics["policy/kl"] == pytest.approx(0, abs=1e-4) and metrics["policy/ratio_max"] == pytest.approx(
        1, abs=1e-5
    )
    close(logprobs, plainly_trained(model, recipe, some_batch(n=2), updates=2), 2e-4)
    assert ("policy/kl_loss" in metrics) == (estimator in ("grpo", "dr_grpo"))


def test_tokens_too_far_from_the_engine_pull_nowhere(model: Path, tmp_path: Path) -> None:
    """Off the importance mask a token trains nothing: neither its advantage nor its distance from the reference, which is largest
    just there, nor its entropy."""
    recipe = quick_recipe(
        model, tmp_path, ppo__estimator="grpo", ppo__epochs=1, ppo__minibatches=1, ppo__policy_lr=1e-2, ppo__entropy_coef=0.1,
        ppo__balance_coef=0.0, ppo__importance_mask=(0.5, 5.0), ppo__lr_warmup=0,
    )  # fmt: skip
    fleet, batch = fleet_of(recipe, tmp_path), some_batch(n=2)
    truth = fleet.annotate(batch).reference_logprobs_BT  # the engine's word, before the policy moves
    near = replace(batch, sampled_logprobs_BT=torch.where(batch.mask_BT, truth, 0))
    moved = fleet.update(fleet.annotate(near)).metrics
    assert moved["policy/grad_norm"] > 0 and moved["rollout/importance_masked"] == 0
    far = replace(near, sampled_logprobs_BT=near.sampled_logprobs_BT + 9)
    still = fleet.update(fleet.annotate(far)).metrics
    assert still["rollout/importance_masked"] == 1
    assert still["policy/grad_norm"] == still["policy/kl_loss"] == 0


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo"])
def test_the_only_update_of_a_step_says_what_was_before_it(model: Path, tmp_path: Path, estimator: Estimator) -> None:
    """Where the step's one update takes the log-probs before it, importance weights and experts' shares from its own forward pass
    (one micro-batch a rank), policy and metrics are those of a pass of their own (several micro-batches), to rounding."""

    def after(micro: int) -> tuple[dict[str, float], list[list[float]]]:
        recipe = quick_recipe(
            model, tmp_path, ppo__estimator=estimator, ppo__epochs=1, ppo__minibatches=1, ppo__policy_lr=1e-2,
            ppo__balance_coef=0.5, learner__micro_batch=micro,
        )  # fmt: skip
        fleet = fleet_of(recipe, tmp_path)
        assert bool(fleet.annotate(some_batch(n=2)).logprobs_BT.numel()) == (micro < 4)
        return trained(recipe, some_batch(n=2), tmp_path)

    (alone, logprobs), (annotated, others) = after(4), after(1)
    for name, value in annotated.items():
        if name != "learner/peak_memory_bytes":
            assert alone[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    close(logprobs, others, 1e-4)


def plainly_trained(model: Path, recipe: PpoRecipe, batch: Batch, *, updates: int) -> list[list[float]]:
    """Log-probs of the probes after `updates` on-policy updates, by loops over replies and autograd."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(model).float() for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), recipe.ppo.policy_lr, recipe.ppo.betas, weight_decay=0)
    coef, estimator, replies = recipe.ppo.kl_coef, recipe.ppo.estimator, range(batch.rows)

    def told(net: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = net(input_ids=tokens[None]).logits[0, :-1] / temperature
        return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0][mask[: len(tokens) - 1]]

    def both(b: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = batch.tokens_BS[b, : int(batch.lengths_B[b])]
        temperature = recipe.sampling.temperature
        with torch.no_grad():
            frozen = told(reference, tokens, batch.mask_BT[b], temperature)
        return told(policy, tokens, batch.mask_BT[b], temperature), frozen

    for _ in range(updates):
        pairs = [both(b) for b in replies]
        kls = [(now - then).detach() for now, then in pairs]
        scores = batch.score_B.tolist()
        if estimator == "rloo":
            scores = [score - coef * float(kl.sum()) for score, kl in zip(scores, kls, strict=True)]
        mates = [[scores[j] for j in replies if batch.group_B[j] == batch.group_B[b]] for b in replies]
        terms = []
        if estimator == "reinforce_pp":
            rest = [torch.stack([scores[b] - coef * kls[b][t:].sum() for t in range(len(kls[b]))]) for b in replies]
            every = torch.cat(rest)
            advantages = [(part - every.mean()) / every.std(correction=0) for part in rest]
        elif estimator == "grpo":
            advantages = [
                torch.tensor((scores[b] - statistics.mean(mates[b])) / (statistics.stdev(mates[b]) + 1e-4))
                for b in replies
            ]
        elif estimator == "dr_grpo":
            advantages = [torch.tensor(scores[b] - statistics.mean(mates[b])) for b in replies]
        else:
            advantages = [torch.tensor(scores[b] - (sum(mates[b]) - scores[b]) / (len(mates[b]) - 1)) for b in replies]
        for (now, then), advantage in zip(pairs, advantages, strict=True):
            term = (now - now.detach()).exp() * advantage
            if estimator in ("grpo", "dr_grpo"):
                term = term - coef * ((then - now).exp() - (then - now) - 1)
            terms.append(term)
        tokens = sum(len(term) for term in terms)
        total = {
            "grpo": lambda t: sum(term.mean() for term in t) / len(t),
            "reinforce_pp": lambda t, tokens=tokens: sum(term.sum() for term in t) / tokens,
        }.get(estimator, lambda t: sum(term.sum() for term in t) / (len(t) * recipe.sampling.max_tokens))
        optimizer.zero_grad()
        (-total(terms)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), recipe.ppo.max_grad_norm)
        optimizer.step()
    answers = []
    for prompt, reply in PROBES:
        tokens = torch.tensor([*prompt, *reply])
        mask = torch.arange(len(tokens) - 1) >= len(prompt) - 1
        with torch.no_grad():
            answers.append(told(policy, tokens, mask, 1.0).tolist())
    return answers


def test_the_first_minibatch_has_ratio_one(model: Path, tmp_path: Path) -> None:
    """Before any update the policy is the one that was annotated: ratio 1, nothing clipped, no KL, to rounding."""
    recipe = quick_recipe(model, tmp_path, ppo__epochs=1, ppo__minibatches=1)
    metrics, _ = trained(recipe, some_batch(), tmp_path, updates=1)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/clip_fraction"] == 0
    assert abs(metrics["policy/approx_kl"]) < 1e-8
    assert metrics["policy/kl"] == pytest.approx(0, abs=1e-4)  # the policy starts as its reference


def test_wider_padding_changes_nothing(model: Path, tmp_path: Path) -> None:
    """A batch padded far beyond its longest row trains the same policy bit for bit."""
    batch = some_batch()

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, 37))

    wide = replace(batch, **{n: padded(t) for n, t in vars(batch).items() if n.endswith(("_BS", "_BT"))})
    recipe = quick_recipe(model, tmp_path)
    plain, with_pads = (trained(recipe, b, tmp_path) for b in (batch, wide))
    assert plain[1] == with_pads[1]


@pytest.mark.parametrize(("experts", "stage"), [((), 2), (EXPERTS, 3)], ids=["attention", "attention and experts"])
def test_the_reference_never_moves(model: Path, tmp_path: Path, experts: tuple[str, ...], stage: int) -> None:
    """LoRA: after updates, log-probs under adapters off are bit for bit those before them, and the policy has moved."""
    recipe = lora_recipe(model, tmp_path, experts, learner__zero_stage=stage)
    fleet = fleet_of(recipe, tmp_path)
    before = fleet.annotate(some_batch())
    fleet.update(before)
    after = fleet.annotate(some_batch())
    assert torch.equal(before.reference_logprobs_BT, after.reference_logprobs_BT)
    assert not torch.equal(before.logprobs_BT, after.logprobs_BT)
    assert torch.equal(before.logprobs_BT, before.reference_logprobs_BT)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_batch(model: Path, tmp_path: Path) -> None:
    """A NaN score raises NonFiniteLoss that names the file, which holds the batch; the weights are as before."""
    recipe = quick_recipe(model, tmp_path)
    fleet = fleet_of(recipe, tmp_path)
    before = fleet.log_probs(PROBES)
    batch = replace(some_batch(), score_B=torch.full((8,), float("nan")))
    with pytest.raises(NonFiniteLoss, match=r"not finite.*diverged/version"):
        fleet.update(fleet.annotate(batch))
    assert fleet.log_probs(PROBES) == before
    [saved] = (tmp_path / "diverged").iterdir()
    assert torch.equal(torch.load(saved)["tokens_BS"], batch.tokens_BS)


def test_adapters_of_experts_do_not_depend_on_how_states_are_cut(model: Path, tmp_path: Path) -> None:
    """Two PPO steps of adapters on attention and experts give the same policy on one rank and, with ZeRO-2 and ZeRO-3 (there
    with gradient checkpointing), on two, to rounding."""
    shared: dict[str, Any] = {"ppo__minibatches": 1, "ppo__policy_lr": 1e-2, "ppo__critic_lr": 1e-2}
    ways = ((1, 0, False), (2, 2, False), (2, 3, True))
    told = [
        trained(lora_recipe(model, tmp_path, EXPERTS, learner__ranks=ranks, learner__zero_stage=stage,
                            model__gradient_checkpointing=checkpointing, **shared), some_batch(), tmp_path)
        for ranks, stage, checkpointing in ways
    ]  # fmt: skip
    (whole, logprobs), *others = told
    for metrics, other_logprobs in others:
        for name in ("policy/loss", "value/loss", "policy/grad_norm", "policy/kl"):
            assert metrics[name] == pytest.approx(whole[name], rel=2e-4, abs=2e-5), name
        close(other_logprobs, logprobs, 1e-4)


def test_unknown_lora_targets_are_named(model: Path, tmp_path: Path) -> None:
    """Targets that match nothing: the error names the setting, the model and the modules it has."""
    recipe = quick_recipe(model, tmp_path, model__tuning="lora", model__lora__targets=("c_attn",))
    placement = Placement([Claim(FLEET, 2, 0.1)])
    with pytest.raises(ValueError, match=r"model.lora.targets \['c_attn'\] match no module of Mixtral.*q_proj"):
        LearnerFleet(recipe, placement, [], tmp_path).ready()
    placement.release()
