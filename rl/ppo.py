"""The composition root of PPO: recipe -> run directory. Everything that is remote becomes so here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from cluster.placement import NO_DEVICES, Placement, connect, has_gpus, require_room
from cluster.tracking import Clock, ConsoleTracker, Stages, Trackers, TuneTracker
from eval.run_directory import RunState
from rewards.experts.interface import Experts
from rewards.fleet import FLEET as REWARDS
from rewards.fleet import RewardFleet
from rewards.guard_file import guard_settings
from rewards.panel import EXPERTS
from rewards.types import ScoredRollout
from rl.checkpoints import Checkpoints
from rl.config import PpoRecipe
from rl.endings import reported
from rl.fleet import FLEET as LEARNER
from rl.fleet import LearnerFleet, Probe, seated
from rl.heldout import Evaluator, Watch, check_metrics, held_out_prompts
from rl.intake import check_input, check_publish, with_model
from rl.layout import claims, require_one_host, sharing
from rl.loop import train
from rl.records import (
    PROCESSES,
    PROVENANCE,
    claimed,
    finished,
    provenance,
    trackers,
    write_atomically,
    write_rollouts,
    write_status,
)
from rollout.chat import Chat
from rollout.corpora import Corpus, load
from rollout.engine_config import EngineSpec
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import RolloutFleet, engine_spec, require_routing
from rollout.prompts import PromptStream, build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import load_tokenizer
from rollout.types import Prompt, Sampling

SHOWN = {
    "reward/mean": "reward",
    "policy/kl": "KL",
    "rollout/length": "length",
    "publish/logprob_gap": "gap",
    "heldout/reward": "held-out",
}


def run(recipe: PpoRecipe) -> Path:
    """Train to the end of the recipe, from the last checkpoint when the run directory holds one; the directory.

    Raises what went wrong, after `status.json` and the report say so: ValueError (bad settings or input), NonFiniteLoss
    (diverged), WorkerDied (a learner rank died), PublishMismatch, RewardError, PoolExhausted, OSError (disk).
    """
    stage, done = Stages(), finished(recipe)
    # room is given back last: a cluster that has died meanwhile keeps whoever asks it waiting
    with claimed(recipe) as directory, ExitStack() as room, reported(directory):
        if done:
            print(f"{directory} is finished and begins no more; raise --steps to go on, or choose another --name")
            return directory
        with stage("reading corpus and model"):
            corpus = load(recipe.corpus)
            check_input(recipe, corpus)
            check_metrics(recipe, corpus)
        with stage("connecting to Ray"):
            connect()
            check_publish(recipe, on_gpu=has_gpus())
            require_room(claims(recipe, on_gpu=has_gpus()))  # before minutes of warm-up
            require_routing(recipe.rollout)
        recipe = with_model(recipe, corpus, directory)
        write_atomically(
            directory / PROVENANCE, json.dumps(provenance(recipe, corpus.provenance, recipe.model.path), indent=1)
        )
        placement = Placement(claims(recipe, on_gpu=has_gpus()))
        room.callback(placement.release)
        require_one_host(recipe, placement, on_gpu=has_gpus())
        with expert_opinions(recipe, directory) as experts:
            with stage("starting engines, learner and rewards"):
                job = Job(recipe, corpus, placement, directory, experts)
                job.ready()
            job.train()
    return directory


class Job:
    """The fleets of one run and what feeds them."""

    def __init__(
        self, recipe: PpoRecipe, corpus: Corpus, placement: Placement, directory: Path, experts: Experts | None = None
    ) -> None:
        self.recipe, self.directory = recipe, directory
        chat = Chat(load_tokenizer(recipe.model.path, recipe.model.revision), system=recipe.prompts.system)
        self.held_out = held_out_prompts(recipe, corpus, chat) if recipe.evaluation.every else []
        ranks = seated(recipe, placement, environment={} if has_gpus() else NO_DEVICES)
        self.engine = RolloutFleet(
            spec_of(recipe, chat.end_ids),
            recipe.rollout.engines,
            placement,
            restarts=recipe.rollout.restarts,
            sharing=sharing(recipe, ranks.places),
        )
        self.reward = RewardFleet(recipe.rewards, placement, environment=reward_environment(recipe), experts=experts)
        limit = recipe.prompts.max_context_tokens
        corpus_prompts = build_prompts(
            corpus.train, chat, max_tokens=limit, min_reference_words=recipe.prompts.min_reference_words
        )
        self.prompts = PromptStream(
            corpus_prompts,
            fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit),
            crisis_prompts(chat, max_tokens=limit),
            recipe.prompts,
            recipe.seed,
        )
        self.learner = LearnerFleet(
            recipe, placement, probes(corpus_prompts, chat, recipe), directory / "diverged", ranks=ranks
        )
        self.engine.on_replace(lambda: self.learner.republish(self.engine))
        self.learner.on_work(self.engine.sleep)
        self.engine.settle()
        self.learner.build()

    def ready(self) -> None:
        """Wait until every actor is built; what one of them raised is raised here. `processes.json` says which is which."""
        pids = {LEARNER: self.learner.ready(), REWARDS: self.reward.ready(), ROLLOUT: self.engine.ready()}
        write_atomically(self.directory / PROCESSES, json.dumps({"driver": [os.getpid()], **pids}) + "\n")

    def train(self) -> None:
        """Run the loop."""
        recipe, drawn = self.recipe, self.recipe.sampling
        sampling = Sampling(drawn.n, drawn.max_tokens, drawn.temperature, recipe.seed)
        deaths = 0

        def record(step: int, scored: Sequence[ScoredRollout]) -> None:
            nonlocal deaths
            write_status(self.directory, RunState.RUNNING, step + 1)
            self.reward.used(step, scored)
            if deaths != (deaths := self.engine.deaths + self.reward.deaths):
                self.ready()  # replacements are other processes

        try:
            self._train(sampling, record)
        finally:
            self.engine.close()
            self.reward.close()

    def _train(self, sampling: Sampling, record: Callable[[int, Sequence[ScoredRollout]], None]) -> None:
        recipe, checkpoint = self.recipe, self.recipe.checkpoint
        train(
            steps=recipe.steps,
            prompts_per_step=recipe.prompts.per_step,
            sampling=sampling,
            prompts=self.prompts,
            engine=self.engine,
            reward=self.reward,
            learner=self.learner,
            checkpoints=Checkpoints(
                self.directory / "checkpoints",
                every=checkpoint.every,
                keep=checkpoint.keep,
                steps=recipe.steps,
                guard=guard_settings(recipe.rewards.crisis.locale, classifier=recipe.rewards.crisis.classifier),
                saved=self.reward.saved,
            ),
            trackers=lambda first_step: Trackers(
                [
                    *trackers(recipe, self.directory, first_step),
                    ConsoleTracker(first_step, recipe.steps, SHOWN),
                    Watch(self.directory, lambda line: print(line, flush=True)),
                    *([TuneTracker()] if ray.util.get_current_placement_group() is not None else []),
                ]
            ),
            record=record,
            clock=Clock(),
            write=partial(write_rollouts, self.directory),
            evaluation=self.evaluator(sampling),
            max_lag=recipe.rollout.max_lag,
            in_flight=recipe.rollout.in_flight,
        )

    def evaluator(self, sampling: Sampling) -> Evaluator | None:
        """What measures the policy on the way; None where the recipe wants none."""
        recipe = self.recipe
        if not recipe.evaluation.every:
            return None
        return Evaluator(
            recipe.evaluation,
            self.held_out,
            sampling,
            steps=recipe.steps,
            directory=self.directory,
            rewards=recipe.rewards,
            measure_replies=self.reward.measure,
        )


@contextmanager
def expert_opinions(recipe: PpoRecipe, directory: Path) -> Iterator[Experts | None]:
    """The people that the reward asks, with the service where they answer; None where it asks none."""
    config, name = recipe.rewards.experts, recipe.name
    if EXPERTS not in recipe.rewards.measured:
        yield None
        return
    from rewards.experts.meanwhile import Asynchronous  # these load the service
    from rewards.experts.opinions import Synchronous
    from rewards.experts.session import rating_session
    from rewards.experts.surrogate_actor import SurrogateActor

    def say(line: str) -> None:
        print(f"experts: {line}", flush=True)

    with rating_session(config, directory, recipe.seed, say) as client:
        surrogate = (
            SurrogateActor(
                recipe.rewards.encoder, members=config.members, seed=recipe.seed, environment=reward_environment(recipe)
            )
            if config.surrogate
            else None
        )
        if config.mode == "synchronous":
            yield Synchronous(config, name, client, surrogate, say=say)
            return
        assert surrogate is not None
        with Asynchronous(config, name, client, surrogate, seed=recipe.seed, say=say) as experts:
            yield experts


def reward_environment(recipe: PpoRecipe) -> dict[str, str]:
    """The environment of processes that read texts."""
    return {"OMP_NUM_THREADS": str(max(int(recipe.rewards.cpus), 1))}


def spec_of(recipe: PpoRecipe, end_ids: tuple[int, ...]) -> EngineSpec:
    """What one of the recipe's engines needs."""
    model = recipe.model
    spec = engine_spec(recipe.rollout, model.path, model.revision, model.dtype, end_ids)
    if recipe.publish.part(model.tuning) != "adapter":
        return spec
    return replace(spec, adapter_rank=model.lora.rank, adapter_targets=model.lora.targets)


def probes(prompts: Sequence[Prompt], chat: Chat, recipe: PpoRecipe) -> list[Probe]:
    """Fixed replies for the publish probe: the corpus's own, cut to a reply's length."""
    chosen = prompts[:: max(len(prompts) // recipe.publish.probes, 1)][: recipe.publish.probes]
    cut = recipe.sampling.max_tokens
    return [(p.token_ids, chat.example(p.history[-1:], p.reference).token_ids[-cut:]) for p in chosen]
