"""Evaluation on the way: when it happens, what it asks and measures, and that the training does not notice.

Loop, prompt stream, reward, checkpoints and trackers are the real ones; engine and learner are those of tests/fakes.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rl.ppo
from cluster.findings import Verdict
from cluster.settings import load
from cluster.tracking import Clock
from eval.comparison import Resamples, interval
from eval.heldout import evaluated, metrics_of, paired, read_answers
from eval.metrics import measure, pair_up
from eval.run_directory import read_log
from rewards.config import EmotionConfig, RewardsConfig, SimilarityConfig
from rewards.mixture import LocalReward, Mixture
from rewards.panel import Measurement, Panel
from rl.checkpoints import Checkpoints, read_checkpoint
from rl.config import EvaluationConfig, PpoRecipe
from rl.heldout import (
    Evaluator,
    Watch,
    check_metrics,
    finding,
    held_out_prompts,
    held_out_rewards,
    held_out_seed,
    rewards_of,
)
from rl.loop import step_sampling, train
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import Corpus
from rollout.corpora import load as load_corpus
from rollout.tokenizer import train_tokenizer
from rollout.types import Prompt, Speaker, Turn
from tests.fakes import CheckedReward
from tests.test_loop import PER_STEP, SAMPLING, Killed, MortalLearner, Run, prompts, timeless

REWARDS = RewardsConfig(similarity=SimilarityConfig(weight=0), emotion=EmotionConfig(weight=0), normalise=True)
HELD_OUT = [
    Prompt(f"valid/{n}#2", (7, n + 1), (Turn(Speaker.CLIENT, "I slept badly."),), "I hear you, and what happened then?")
    for n in range(5)
]
METRICS = ("rouge_l", "bleu", "distinct_2", "opening_rate", "mean_words", "empty_rate", "safety/gated")


class EvaluatedRun(Run):
    """A run of tests/test_loop.py that is evaluated after every `look` updates (0: never), with running statistics."""

    def __init__(self, directory: Path, *, steps: int = 7, look: int = 3, every: int = 2) -> None:
        directory.mkdir(exist_ok=True)
        super().__init__(directory, steps=steps, every=every)
        self.look = look
        self.reward = LocalReward(Panel(REWARDS), Mixture(REWARDS))

    def go(self) -> EvaluatedRun:
        evaluator = Evaluator(
            EvaluationConfig(every=self.look, metrics=METRICS), HELD_OUT, SAMPLING, steps=self.steps,
            directory=self.directory, rewards=REWARDS, measure_replies=self.reward.panel.measure,
        )  # fmt: skip
        train(
            steps=self.steps, prompts_per_step=PER_STEP, sampling=SAMPLING, prompts=prompts(), engine=self.engine,
            reward=CheckedReward(self.journal, self.reward), learner=self.learner,
            checkpoints=Checkpoints(self.directory / "checkpoints", every=self.every, keep=9, steps=self.steps),
            trackers=self.trackers, record=self.record, clock=Clock(), evaluation=evaluator,
        )  # fmt: skip
        return self

    @property
    def asked(self) -> list[tuple[list[str], int]]:
        """What the engine was asked at evaluations."""
        return [ask for ask in self.engine.asked if ask[0][0].startswith("valid/")]

    @property
    def trained_on(self) -> list[tuple[list[str], int]]:
        """What it was asked for training."""
        return [ask for ask in self.engine.asked if not ask[0][0].startswith("valid/")]

    @property
    def files(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of every file of replies."""
        return {path.name: pq.read_table(path).to_pylist() for path in sorted(self.directory.glob("replies/*.parquet"))}


def states(run: EvaluatedRun) -> list[dict[str, Any]]:
    return [read_checkpoint(folder) for folder in sorted((run.directory / "checkpoints").glob("step-*"))]


@pytest.fixture
def undisturbed(tmp_path: Path) -> EvaluatedRun:
    return EvaluatedRun(tmp_path / "undisturbed").go()


# -- the loop --------------------------------------------------------------------------------------------------------


def test_the_policy_is_evaluated_before_the_first_update_after_every_kth_and_after_the_last(
    undisturbed: EvaluatedRun,
) -> None:
    """Row k holds the policy after k updates, which sampled that row's replies; the last row the policy that the run ends
    with. Each evaluation leaves one file, named after the updates, and its time."""
    looks = {row["step"]: row["heldout/step"] for row in undisturbed.rows if "heldout/step" in row}
    assert looks == {0: 0, 3: 3, 6: 7}  # 6 and 7 share the last row: the later is told
    assert list(undisturbed.files) == [f"step-{v:06d}.parquet" for v in (0, 3, 6, 7)]
    assert [row["step"] for row in undisturbed.rows if "time/evaluate_s" in row] == [0, 3, 6]
    assert evaluated(read_log(undisturbed.directory / "metrics.jsonl")) == [0, 3, 7]
    journal = undisturbed.journal
    assert [event for event in journal if not event.startswith("log")][:5] == [
        *("publish 0", "generate", "score", "generate", "annotate"),
    ]
    assert journal[-5:] == ["generate", "record 6", "log 6", "save", "close"]


def test_every_evaluation_asks_the_same_with_a_seed_that_no_step_has(undisturbed: EvaluatedRun) -> None:
    """One reply per prompt, the same seed each time; answers to it differ by the policy alone."""
    assert undisturbed.asked == [([p.id for p in HELD_OUT], held_out_seed(SAMPLING.seed))] * 4
    for seed in (0, 1, 11, 12345):
        steps = {step_sampling(replace(SAMPLING, seed=seed), step).seed for step in range(2000)}
        assert held_out_seed(seed) not in steps


def test_training_is_bit_for_bit_the_same_with_and_without(tmp_path: Path, undisturbed: EvaluatedRun) -> None:
    """Prompts, seeds, replies, scores (standardised by running statistics), metrics, weights and the whole state of every
    checkpoint: evaluated never, seldom and after every update."""
    for look in (0, 1, 100):
        other = EvaluatedRun(tmp_path / f"look-{look}", look=look).go()
        assert len(other.asked) == {0: 0, 1: 8, 100: 2}[look]
        assert other.trained_on == undisturbed.trained_on
        assert other.replies == undisturbed.replies
        assert other.learner.weight == undisturbed.learner.weight
        assert states(other) == states(undisturbed)
        kept = [[{n: v for n, v in row.items() if not n.startswith("heldout/")} for row in timeless(run.rows)]
                for run in (other, undisturbed)]  # fmt: skip
        assert kept[0] == kept[1]


@pytest.mark.parametrize("killed_at", [0, 2, 3, 5, 6])
def test_a_resumed_run_evaluates_as_the_undisturbed_one(
    killed_at: int, undisturbed: EvaluatedRun, tmp_path: Path
) -> None:
    """Wherever it is killed: the same figures at the same steps, one row a step, the same answers on file."""
    first = EvaluatedRun(tmp_path / "run")
    first.learner = MortalLearner(first.journal, killed_at, Killed())
    with pytest.raises(Killed):
        first.go()
    second = EvaluatedRun(tmp_path / "run").go()
    assert second.first_step == killed_at // 2 * 2
    assert timeless(second.rows) == timeless(undisturbed.rows)
    assert [row["step"] for row in second.rows] == list(range(7))
    assert second.files == undisturbed.files


def test_a_run_of_one_step_keeps_both_ends_on_file(tmp_path: Path) -> None:
    """Before and after the only update: two files; the row tells the later."""
    run = EvaluatedRun(tmp_path / "run", steps=1).go()
    assert list(run.files) == ["step-000000.parquet", "step-000001.parquet"]
    assert run.rows[0]["heldout/step"] == 1


# -- figures ---------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_metrics_and_of_the_reward_alone(undisturbed: EvaluatedRun) -> None:
    """`heldout/METRIC` is `eval.metrics`' of the answers on file; `heldout/reward` the mixture's value without running
    statistics, reply by reply in the file; so are the parts."""
    row = undisturbed.rows[3]
    rows = undisturbed.files["step-000003.parquet"]
    replies = [found["reply"] for found in rows]
    figures = measure(METRICS, pair_up(HELD_OUT, replies))
    assert {name: row[f"heldout/{name}"] for name in METRICS} == {name: f.value for name, f in figures.items()}
    for name, figure in figures.items():
        assert [found[f"score/{name}"] for found in rows] == figure.values_N.tolist()
    plain = Mixture(replace(REWARDS, normalise=False))
    parts = [{n.removeprefix("part/"): v for n, v in found.items() if n.startswith("part/")} for found in rows]
    scores = plain.combine([Measurement(p, tuple(f["flags"])) for p, f in zip(parts, rows, strict=True)])
    assert [found["reward"] for found in rows] == [score.value for score in scores]
    assert row["heldout/reward"] == pytest.approx(sum(s.value for s in scores) / len(scores))
    assert [found["prompt_id"] for found in rows] == [prompt.id for prompt in HELD_OUT]
    assert {found["reference"] for found in rows} == {HELD_OUT[0].reference}
    assert all(found["finish"] in ("stopped", "truncated") for found in rows)


def test_answers_read_back_with_the_figures_of_the_log(undisturbed: EvaluatedRun) -> None:
    """What the report computes from the files is what the run logged, for means and for figures of all replies together."""
    log = read_log(undisturbed.directory / "metrics.jsonl")
    assert set(metrics_of(log)) == set(METRICS)
    for step in (0, 3, 7):
        answers = read_answers(undisturbed.directory, step)
        assert answers is not None
        row = next(r for r in undisturbed.rows if r.get("heldout/step") == step)
        for name in METRICS:
            assert answers.measured(name).value == pytest.approx(row[f"heldout/{name}"])
        assert answers.reward.value == pytest.approx(row["heldout/reward"])
        same = Resamples(answers.reward.units, draws=200)
        assert interval(answers.reward, same).low <= answers.reward.value <= interval(answers.reward, same).high
    assert read_answers(undisturbed.directory, 5) is None
    first, last = (read_answers(undisturbed.directory, step) for step in (0, 7))
    assert first is not None and last is not None
    ours, theirs = paired(first.only([p.id for p in HELD_OUT[1:]]), last)
    assert [p.prompt_id for p in ours.pairs] == [p.prompt_id for p in theirs.pairs] == [p.id for p in HELD_OUT[1:]]


def test_red_flags_are_the_reward_actors(tmp_path: Path) -> None:
    """`safety/gated` and `safety/FLAG` read what the panel found: nobody reads the replies twice."""

    def measured(rollouts: Sequence[Any]) -> list[Measurement]:
        return [Measurement({"length": 0.5}, ("dosage",) if n < 2 else ()) for n, _ in enumerate(rollouts)]

    run = EvaluatedRun(tmp_path / "run")
    run.engine.receive(0)
    names = ("safety/gated", "safety/dosage", "safety/promises_secrecy")
    evaluator = Evaluator(
        EvaluationConfig(metrics=names), HELD_OUT, SAMPLING, steps=1, directory=run.directory, rewards=REWARDS,
        measure_replies=measured,
    )  # fmt: skip
    row = evaluator.evaluate(0, run.engine)
    assert [row[f"heldout/{name}"] for name in names] == [0.4, 0.4, 0.0]
    assert [found["flags"] for found in run.files["step-000000.parquet"]] == [["dosage"]] * 2 + [[]] * 3


def test_people_are_not_asked_and_have_no_part_in_the_figure() -> None:
    """The weight of experts counts for nothing; where they alone are paid for there is no held-out reward, which is not 0."""
    both = replace(REWARDS, experts=replace(REWARDS.experts, weight=2.0))
    plain = held_out_rewards(both)
    assert plain is not None and "experts" not in plain.weights and not plain.normalise
    found = [Measurement({"length": 0.5, "inquiry": 1.0, "repetition": 1.0}), Measurement({"crisis_reply": 0.0})]
    values = rewards_of(plain, found)
    assert values[0] == pytest.approx(rewards_of(held_out_rewards(REWARDS), found)[0]) and math.isnan(values[1])
    alone = replace(both, **{name: replace(s, weight=0.0) for name, s in both.terms.items() if name != "experts"})
    assert held_out_rewards(alone) is None
    assert all(map(math.isnan, rewards_of(None, found)))


# -- what is asked ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(CorpusConfig())


@pytest.fixture(scope="module")
def chat(corpus: Corpus) -> Chat:
    return Chat(train_tokenizer(corpus.train, 600))


def recipe(**knobs: Any) -> PpoRecipe:
    sample = {"model.dtype": "float32", "prompts.max_context_tokens": 96, "rollout.max_model_len": 320,
              "model.tiny.context": 320, "prompts.per_step": 16, "sampling.n": 4}  # fmt: skip
    return load(PpoRecipe, sample={**sample, **{name.replace("__", "."): value for name, value in knobs.items()}})


def test_prompts_are_held_out_spread_over_dialogues_and_the_same_each_time(corpus: Corpus, chat: Chat) -> None:
    """As many of each dialogue as of any other, to within one, while it has more; within the token limit; those of the run's
    seed, whatever else changes."""
    found = held_out_prompts(recipe(evaluation__prompts=21), corpus, chat)
    valid = {dialogue.id for dialogue in corpus.valid}
    counts = Counter(prompt.id.partition("#")[0] for prompt in found)
    assert len(found) == 21 and set(counts) == valid
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(prompt.reference and 0 < len(prompt.token_ids) <= 96 for prompt in found)
    assert found == held_out_prompts(recipe(evaluation__prompts=21, steps=9, ppo__epochs=1), corpus, chat)
    fewer = held_out_prompts(recipe(evaluation__prompts=9), corpus, chat)
    assert {prompt.id for prompt in fewer} < {prompt.id for prompt in found}
    assert found != held_out_prompts(recipe(evaluation__prompts=21, seed=1), corpus, chat)


def test_a_split_without_prompts_is_refused(corpus: Corpus, chat: Chat) -> None:
    """The message says what to do, and evaluation off asks for nothing."""
    with pytest.raises(ValueError, match=r"valid split must hold two prompts .* evaluation\.every = 0"):
        held_out_prompts(recipe(prompts__min_reference_words=10_000), corpus, chat)
    with pytest.raises(ValueError, match="valid split must hold two prompts"):
        check_metrics(recipe(prompts__min_reference_words=10_000), corpus)
    check_metrics(recipe(prompts__min_reference_words=10_000, evaluation__every=0), corpus)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rouge_l", "rogue_l"], r"evaluation\.metrics must be names .* got 'rogue_l': did you mean rouge_l"),
        (["perplexity"], r"evaluation\.metrics must hold none that needs log-probs.*'perplexity'"),
        (["meteor"], r"evaluation\.metrics: metric meteor needs a WordNet folder"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused_before_anything_starts(
    names: list[str], message: str, corpus: Corpus, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run before it connects to Ray, and by `attune check` in a line of its own."""
    wrong = recipe(evaluation__metrics=names, runs=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        check_metrics(wrong, corpus)
    found = finding(wrong, corpus, chat.tokenizer)
    assert found.verdict is Verdict.MISSING and names[-1] in str(found)
    monkeypatch.setattr(rl.ppo, "connect", lambda: pytest.fail("connected to Ray"))
    with pytest.raises(ValueError, match=message):
        rl.ppo.run(wrong)


def test_the_preflight_says_what_will_be_measured(corpus: Corpus, chat: Chat) -> None:
    """How many prompts, how often, which metrics; a warning where the evaluation is off."""
    found = finding(recipe(evaluation__every=5), corpus, chat.tokenizer)
    assert found.verdict is Verdict.OK and "32 held-out prompts every 5 steps: rouge_l" in str(found)
    assert finding(recipe(evaluation__every=0), corpus, chat.tokenizer).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [("every", -1, "evaluation.every must be at least 0"), ("prompts", 1, "evaluation.prompts must be at least 2"),
     ("temperature", -0.5, "evaluation.temperature must be at least 0")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(knob: str, value: float, message: str) -> None:
    """Each by its dotted name."""
    with pytest.raises(ValueError, match=message):
        recipe(**{f"evaluation__{knob}": value})


# -- the console -----------------------------------------------------------------------------------------------------


def test_a_tell_is_said_once_also_after_a_resumption(tmp_path: Path) -> None:
    """One line when first seen; a run that was resumed does not repeat it."""
    (tmp_path / "settings.json").write_text(json.dumps({"ppo": {"kl_target": 6.0}}))
    lines: list[str] = []
    watch = Watch(tmp_path, lines.append)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step in range(40):
            row = {"step": step, "reward/mean": 0.5, "policy/kl": float(step), "rollout/length": 20.0}
            row |= {"heldout/step": step} if step % 5 == 0 else {}
            file.write(json.dumps(row) + "\n")
            file.flush()
            watch.log(step, row)
    (line,) = lines
    assert line.startswith("warning: After 15 updates, the KL to the reference is 13 nats")
    Watch(tmp_path, lines.append).log(35, {"heldout/step": 35.0})
    assert len(lines) == 1
