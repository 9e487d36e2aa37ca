"""The policy on dialogues that it never learns from, on the way: what is asked, how the answers are measured and kept.

Nothing here reaches the training. The replies are sampled with a seed of their own, behind the step's own replies and before
the publish that clears the engines' caches; they are scored by the reward actors alone, without experts, running statistics
and audit. So a run is bit for bit the same with and without, and a resumed one evaluates as an undisturbed one does: what is
asked depends on the settings alone.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.findings import Finding, missing, ok, warn
from eval.figures import Ledger, Measured
from eval.heldout import PREFIX, REWARD, SCORE, STEP
from eval.metrics import Instruments, MetricsConfig, Need, chosen, measure, pair_up
from eval.over_optimisation import Kind, Tell, seen, tells
from eval.pair import Pair, unit_ids
from eval.run_directory import read_run
from rewards.config import RewardsConfig
from rewards.mixture import Mixture
from rewards.panel import EXPERTS, Measurement
from rl.config import EvaluationConfig, PpoRecipe
from rl.records import write_replies
from rollout.chat import Chat, PromptTooLong
from rollout.corpora import Corpus
from rollout.prompts import asked, questions
from rollout.types import Dialogue, Finish, Prompt, Rollout, RolloutEngine, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FLAGS = "safety/"  # metrics that the reward actors have answered with their flags
_UNKNOWN = (Need.LOGPROBS, Need.OTHERS)  # not of prompts


class Evaluator:
    """Answers `prompts` once at every evaluation, the same seed each time, and measures the answers (`rl.loop.Evaluation`).

    `measure_replies` is the reward actors' (`RewardFleet.measure`). The figures: `heldout/step`, the updates that the policy
    had made; `heldout/reward`, the mean of the reward's terms as `held_out_rewards` weighs them; `heldout/METRIC`;
    `heldout/length` in tokens, `heldout/truncated`. A figure of no reply is left out.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        steps: int,
        directory: Path,
        rewards: RewardsConfig,
        measure_replies: Callable[[Sequence[Rollout]], Sequence[Measurement]],
    ) -> None:
        """`sampling` is the training's, its seed the run's."""
        self._config, self._prompts, self._steps, self._directory = config, tuple(prompts), steps, directory
        warmth = sampling.temperature if config.temperature is None else config.temperature
        self._sampling = replace(sampling, n=1, temperature=warmth, seed=held_out_seed(sampling.seed))
        self._rewards, self._measure = held_out_rewards(rewards), measure_replies
        self._instruments = Instruments(MetricsConfig(rewards=rewards))

    def due(self, version: int) -> bool:
        """See `rl.loop.Evaluation`."""
        every = self._config.every
        return every > 0 and (version % every == 0 or version == self._steps)

    def evaluate(self, version: int, engine: RolloutEngine) -> dict[str, float]:
        """See `rl.loop.Evaluation`; the answers are kept in `replies/`."""
        rollouts = engine.generate(self._prompts, self._sampling)
        measured = self._measure(rollouts)
        rewards = rewards_of(self._rewards, measured)
        pairs = pair_up(
            self._prompts, [rollout.text for rollout in rollouts], written=[rollout.labels for rollout in rollouts]
        )
        figures = self._figures(pairs, measured)
        parts = sorted({name for found in measured for name in found.parts})
        columns: dict[str, Sequence[Any]] = {
            "finish": [rollout.finish.value for rollout in rollouts],
            "flags": [list(found.flags) for found in measured],
            "reward": _or_none(rewards),
            **{f"part/{name}": [found.parts.get(name) for found in measured] for name in parts},
            **{f"{SCORE}{name}": _or_none(figure.values_N.tolist()) for name, figure in figures.items()},
        }
        write_replies(self._directory, version, self._prompts, [pair.reply for pair in pairs], columns)
        known = [reward for reward in rewards if math.isfinite(reward)]
        row = {
            STEP: float(version),
            REWARD: math.fsum(known) / len(known) if known else math.nan,
            **{f"{PREFIX}{name}": figure.value for name, figure in figures.items()},
            f"{PREFIX}length": sum(len(rollout.response_ids) for rollout in rollouts) / len(rollouts),
            f"{PREFIX}truncated": sum(r.finish is Finish.TRUNCATED for r in rollouts) / len(rollouts),
        }
        return {name: value for name, value in row.items() if math.isfinite(value)}

    def _figures(self, pairs: list[Pair], measured: Sequence[Measurement]) -> dict[str, Measured]:
        """Of a metric whose needs the replies do not meet (no reply has the label that it is about) there is none."""
        ledger, found = Ledger(unit_ids(pairs, "prompt")), dict[str, Measured]()
        for metric in chosen(self._config.metrics):
            if metric.name.startswith(_FLAGS):
                flag = metric.name.removeprefix(_FLAGS)
                raised = [bool(m.flags) if flag == "gated" else flag in m.flags for m in measured]
                found[metric.name] = ledger.mean(metric.name, np.array(raised, dtype=np.float64), rate=True)
                continue
            try:
                metric.check(pairs, self._instruments)
            except ValueError:
                continue
            found |= measure([metric.name], pairs, self._instruments)
        return found


class Watch:
    """A tracker that says on the console, once each, what tells of over-optimisation. It reads the run directory: give it its
    place behind the tracker that writes there."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory, self._say = directory, say
        self._said: set[Kind] = {tell.kind for tell, _ in seen(read_run(directory))}  # before the run was resumed

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look again when the step was evaluated."""
        if STEP not in metrics:
            return
        for tell in tells(read_run(self._directory)):
            if tell.kind not in self._said:
                self._say(_line(tell))
                self._said.add(tell.kind)

    def close(self) -> None:
        """Nothing is open."""


def _line(tell: Tell) -> str:
    return f"warning: {tell.sentence}"


def held_out_seed(seed: int) -> int:
    """The seed of every evaluation of a run: none of its steps has it (`rl.loop.step_sampling`)."""
    return -1 - seed


def held_out_rewards(config: RewardsConfig) -> RewardsConfig | None:
    """The reward as held-out replies earn it: nobody is asked, and nothing is standardised, so that figures of early and late
    policies are on one scale. None where people alone are paid for."""
    if not set(config.weights) - {EXPERTS}:
        return None
    return replace(config, normalise=False, normalise_terms=False, experts=replace(config.experts, weight=0.0))


def rewards_of(config: RewardsConfig | None, measured: Sequence[Measurement]) -> list[float]:
    """The reward of each reply, nan where no paid term applies."""
    if config is None:
        return [math.nan] * len(measured)
    paid = [not config.weights.keys().isdisjoint(found.parts) for found in measured]
    scores = iter(Mixture(config).combine([found for found, pays in zip(measured, paid, strict=True) if pays]))
    return [next(scores).value if pays else math.nan for pays in paid]


def held_out_prompts(recipe: PpoRecipe, corpus: Corpus, chat: Chat) -> list[Prompt]:
    """The prompts that every evaluation asks, in the order of their ids.

    One of each dialogue of the valid split, then a second of each, and so on, in an order of the run's seed. Fewer where the
    split has fewer that fit. Raises ValueError when there are not two.
    """
    config, limit = recipe.evaluation, recipe.prompts.max_context_tokens
    found: list[Prompt] = []
    for question in _in_turn(corpus.valid, recipe):
        try:
            found.append(asked(question, chat, limit))
        except PromptTooLong:
            continue
        if len(found) == config.prompts:
            break
    if len(found) < 2:
        raise ValueError(_too_few(recipe, len(found)))
    return sorted(found, key=lambda prompt: prompt.id)


def check_metrics(recipe: PpoRecipe, corpus: Corpus) -> None:
    """Raise ValueError when a metric of `evaluation.metrics` is none, or cannot be had during training: before anything starts."""
    if not recipe.evaluation.every:
        return
    try:
        metrics = chosen(recipe.evaluation.metrics)
    except ValueError as error:
        raise ValueError(f"evaluation.{error}") from None
    some = list(itertools.islice(_in_turn(corpus.valid, recipe), recipe.evaluation.prompts))
    if len(some) < 2:
        raise ValueError(_too_few(recipe, len(some)))
    pairs = pair_up(some, ["a reply"] * len(some), written=[{"emotion": "x", "dialogue_act": "x"}] * len(some))
    instruments = Instruments(MetricsConfig(rewards=recipe.rewards))
    for metric in metrics:
        if Need.LOGPROBS in metric.needs:
            raise ValueError(
                f"evaluation.metrics must hold none that needs {Need.LOGPROBS.value}, holds {metric.name!r}: nobody asks for those "
                "of the references during training; drop it"
            )
        try:
            replace(metric, needs=metric.needs - {*_UNKNOWN}).check(pairs, instruments)
        except ValueError as error:
            raise ValueError(f"evaluation.metrics: {error}") from None


def finding(recipe: PpoRecipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """What `attune check` says of the evaluations."""
    config = recipe.evaluation
    if not config.every:
        return warn("evaluation", "none on the way: over-optimisation goes unseen", "set evaluation.every, such as 10")
    try:
        check_metrics(recipe, corpus)
        count = len(held_out_prompts(recipe, corpus, Chat(tokenizer, system=recipe.prompts.system)))
    except ValueError as error:
        return missing("evaluation", str(error))
    return ok("evaluation", f"{count} held-out prompts every {config.every} steps: {', '.join(config.metrics)}")


def _too_few(recipe: PpoRecipe, count: int) -> str:
    limits = recipe.prompts
    return (
        f"the valid split must hold two prompts to evaluate on, holds {count} (prompts.max_context_tokens = "
        f"{limits.max_context_tokens}, prompts.min_reference_words = {limits.min_reference_words}); add dialogues, or set "
        "evaluation.every = 0"
    )


def _in_turn(dialogues: Sequence[Dialogue], recipe: PpoRecipe) -> Iterator[Prompt]:
    """The questions of the dialogues, one of each in turn; a dialogue is read when its turn comes."""
    order = random.Random(f"{recipe.seed}/held-out")
    least = recipe.prompts.min_reference_words

    def of(dialogue: Dialogue) -> Iterator[Prompt]:
        own = list(questions([dialogue], min_reference_words=least))
        return iter(random.Random(f"{recipe.seed}/{dialogue.id}").sample(own, len(own)))

    waiting = [of(dialogue) for dialogue in order.sample(list(dialogues), len(dialogues))]
    while waiting:
        still = []
        for questions_left in waiting:
            question = next(questions_left, None)
            if question is not None:
                yield question
                still.append(questions_left)
        waiting = still


def _or_none(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
