"""A suite: what it takes, who answers, what is kept, and that no failure becomes a figure."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import SettingsError
from eval.answer_cache import kept, model_key, prompts_key
from eval.arms import Answer, BestOf, Echo, Engine, Outcome, Reference, Remote
from eval.comparison import holm
from eval.endpoint import Endpoint
from eval.instruments import Instruments, MetricsConfig
from eval.metrics import measure
from eval.pair import pair_up
from eval.suite_config import SUITES, Suite, load_suite, suite_path
from eval.suite_findings import sentences, warnings
from eval.suite_results import Asked, Findings, find, usable
from eval.suite_table import comma_separated, markdown, replies
from rewards.config import CrisisConfig, JudgeConfig, RewardsConfig
from rewards.types import RewardError, Score, ScoredRollout
from rl.suite_answers import _Arm
from rl.suite_json import results_json
from rl.suite_training import Model, _named, recipes
from rollout.chat import Chat
from rollout.config import CorpusConfig, FieldsConfig
from rollout.corpora import load as load_corpus
from rollout.tokenizer import train_tokenizer
from rollout.types import Finish, Prompt, Rollout, Sampling, Speaker, Turn
from tests.faulty_server import Fault, FaultyServer, body, drop, hang, status

ROOT = Path(__file__).parents[1]
RULES = Instruments(MetricsConfig(rewards=RewardsConfig(crisis=CrisisConfig(classifier=False))))
SMALL = """
name = "small"
against = "plain"
metrics = ["rouge_l", "bleu", "distinct_2", "mean_words", "duplicate_rate", "safety/gated"]
by = "prompt"
draws = 400
[corpora.test]
[arms.plain]
kind = "echo"
[arms.gold]
kind = "reference"
title = "therapist"
[arms.made]
kind = "endpoint"
url = "http://127.0.0.1:1/v1"
model = "m"
"""


def prompts(count: int = 12) -> list[Prompt]:
    """Clients who say different things, and therapists who answer each."""
    return [
        Prompt(
            f"d{i // 3}#{i % 3}",
            (1, 2, 3),
            (Turn(Speaker.CLIENT, f"I lost my job number {i} and I cannot sleep"),),
            f"Losing job number {i} sounds hard. What keeps you awake at night?",
            "sadness",
        )
        for i in range(count)
    ]


def suite(tmp_path: Path, text: str = SMALL, *argv: str) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return load_suite(path, ["--runs", str(tmp_path / "runs"), *argv])


def said(texts: Mapping[str, str] | Callable[[Prompt], str], of: Sequence[Prompt]) -> list[Answer]:
    say = texts if callable(texts) else lambda prompt: texts[prompt.id]
    return [Answer(prompt.id, 0, say(prompt)) for prompt in of]


def findings_of(chosen: Suite, answers: Mapping[str, Sequence[Answer]], asked: Sequence[Prompt]) -> Findings:
    return find(chosen, {"test": Asked(asked, {}, answers, {})}, RULES, lambda line: None)


# --- settings


def test_every_shipped_suite_is_sound_and_has_a_local_twin() -> None:
    """Each loads with its recipes; each study has a twin on tiny models, with the paper's figures for arms that it has."""
    names = {path.stem for path in SUITES.glob("*.toml")}
    assert {name for name in names if not name.endswith("_local")} == {
        "chatmgl_table1",
        "psychologist_table1",
        "context_emotion",
    }
    assert {f"{name}_local" for name in names if not name.endswith("_local")} <= names
    for name in names:
        chosen = load_suite(suite_path(name))
        assert chosen.settings.name == name and chosen.settings.question.endswith("?")
        for arm in chosen.arms:
            recipes(chosen, arm)
        assert chosen.published and {one.ours for one in chosen.published} - {""} <= set(chosen.arms)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL.replace("rouge_l", "rouge_i", 1), ["rouge_i", "did you mean", "rouge_l"]),
        (SMALL.replace('against = "plain"', 'against = "sft"'), ["against", "plain, gold", "'sft'"]),
        (SMALL.replace('kind = "echo"', 'kind = "ecko"'), ["kind", "echo", "'ecko'", "arms.plain"]),
        (SMALL + '[arms.m]\nkind = "model"\n', ["arms.m", "model", "train"]),
        (SMALL + '[arms.m]\nmodel = "{sft}"\n', ["arms.m", "'sft'", "before"]),
        (SMALL + '[arms.b]\nkind = "best_of"\nof = "gold"\n', ["arms.b.of", "kind model"]),
        (SMALL + '[arms.e]\nkind = "endpoint"\nmodel = "m"\n', ["arms.e", "url"]),
        (SMALL + "[arms.Big-One]\nkind = 'echo'\n", ["Big-One", "rename"]),
        (SMALL.replace("[corpora.test]", "[corpora.test]\nspilt = 'test'"), ["spilt", "split"]),
        (SMALL.replace("[corpora.test]", "[corpora.test]\nprompts = -1"), ["prompts", "-1"]),
        (SMALL + "[generation]\nmax_tokens = 4000\n", ["max_model_len", "4512"]),
        (SMALL + "[[published]]\nsource = 'x'\n", ["published", "metric"]),
        ('name = "x"\n[corpora.test]\n', ["arms"]),
        (SMALL.replace("by =", 'main = "meteor"\nby ='), ["main", "rouge_l", "'meteor'"]),
        (SMALL + "[[published]]\nsource='x'\narm='y'\nmetric='rouge_9'\nvalue=1.0\n", ["published", "rouge_9"]),
        (
            SMALL + "[[published]]\nsource='x'\narm='y'\nmetric='bleu'\nvalue=1.0\nours='nobody'\n",
            ["published", "nobody"],
        ),
        (SMALL + "[crisis]\narms = ['gold']\n", ["crisis.arms", "'gold'"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: Sequence[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        suite(tmp_path, text)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_the_command_line_changes_arms_and_corpora(tmp_path: Path) -> None:
    chosen = suite(tmp_path, SMALL, "--corpora.test.prompts", "7", "--arms.gold.title", "people", "--draws", "300")
    assert chosen.corpora["test"].prompts == 7
    assert chosen.arms["gold"].title == "people"
    assert chosen.settings.draws == 300


@pytest.mark.parametrize(
    "words", [["--name.foo", "1"], ["--published.x", "1"], ["--arms.plain.kind.x", "1"], ["--help"]]
)
def test_overrides_that_are_none_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        suite(tmp_path, SMALL, *words)


@pytest.mark.parametrize("command", ["ppo", "talk local", "sft local", "ppo no_such_recipe", "ppo local --ppo.lr 3"])
def test_training_commands_are_looked_at_first(command: str, tmp_path: Path) -> None:
    chosen = suite(tmp_path, SMALL + f'[arms.m]\ntrain = ["{command}"]\n')
    with pytest.raises(SettingsError):
        recipes(chosen, "m")


def test_arms_are_trained_on_the_suites_corpus_and_seed(tmp_path: Path) -> None:
    text = (
        SMALL.replace("[corpora.test]", '[corpora.test]\nformat = "esconv"\npath = "some.json"')
        + '[arms.m]\ntrain = ["ppo local"]\n'
    )
    [recipe] = recipes(suite(tmp_path, text, "--seed", "5"), "m")
    assert (recipe.corpus.format, recipe.corpus.path, recipe.seed) == ("esconv", "some.json", 5)
    assert recipe.directory == tmp_path / "runs" / "small" / "runs" / "m_1_ppo"


# --- who answers


def test_echo_and_reference() -> None:
    asked = prompts(3)
    assert [a.text for a in Echo(2).answers(asked)] == [p.last_client_turn for p in asked for _ in range(2)]
    assert [a.text for a in Reference().answers(asked)] == [p.reference for p in asked]
    nobody = Prompt("x#1", (), asked[0].history)
    [failed] = Reference().answers([nobody])
    assert failed.outcome is Outcome.FAILED and failed.error


class Counting:
    """An engine whose k-th reply to a prompt has k words."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        return [
            Rollout(
                p,
                k,
                (5,) * (k + 1),
                (-0.5,) * (k + 1),
                (),
                " ".join(["word"] * (k + 1)),
                Finish.STOPPED if k else Finish.ABORTED,
            )
            for p in prompts
            for k in range(sampling.n)
        ]

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        return [[-1.0] * len(reply) for _, reply in sequences]


class ByWords:
    """Pays by the word, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(min(len(r.text.split()), self.limit) / 10) for r in rollouts]

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        return list(scored)

    def metrics(self) -> dict[str, float]:
        return {}


def test_best_of_takes_the_best_of_each_samples_own_candidates() -> None:
    """With two samples of four candidates each, sample 0 chooses among replies 0 to 3 and sample 1 among 4 to 7; of equals the
    first is taken, and a reply that the engine gave up never wins."""
    engine = Engine(Counting(), chat(), Sampling(n=2))
    found = BestOf(engine, ByWords(10), 4).answers(prompts(2))  # type: ignore[arg-type]
    assert [(a.sample, len(a.text.split())) for a in found] == [(0, 4), (1, 8)] * 2
    capped = BestOf(engine, ByWords(2), 4).answers(prompts(1))  # type: ignore[arg-type]
    assert [len(a.text.split()) for a in capped] == [2, 5]
    nothing = BestOf(engine, ByWords(0), 2).answers(prompts(1))  # type: ignore[arg-type]
    assert [len(a.text.split()) for a in nothing] == [2, 3]


def test_an_aborted_reply_is_a_failure_not_an_empty_one() -> None:
    [answer] = Engine(Counting(), chat(), Sampling(n=1)).answers(prompts(1))
    assert answer.outcome is Outcome.FAILED and answer.error


def test_a_label_that_is_not_written_is_wrong_and_not_absent() -> None:
    """A model that was taught to write the emotion first and stops doing so scores 0, not a dash."""
    asked = prompts(3)
    answers = Engine(Counting(), chat(FieldsConfig(emotion="predicted")), Sampling(n=2)).answers(asked)[1::2]
    assert all(answer.written == {"emotion": ""} for answer in answers)
    pairs = pair_up(asked, [a.text for a in answers], written=[a.written for a in answers])
    assert measure(["emotion_label"], pairs, RULES)["emotion_label"].value == 0
    with pytest.raises(ValueError, match="none of the 3 replies"):
        measure(["emotion_label"], pair_up(asked, ["a", "b", "c"]), RULES)


@cache
def chat(fields: FieldsConfig | None = None) -> Chat:
    return Chat(train_tokenizer(load_corpus(CorpusConfig()).train, 400), fields=fields)


def completion(text: object, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }  # fmt: skip


def remote(
    server: FaultyServer, cache: Path, *, retries: int = 1, timeout_s: float = 5.0, samples: int = 1, at_once: int = 4
) -> Remote:
    cache.mkdir(exist_ok=True)
    endpoint = Endpoint(server.url, "m", "NO_SUCH_KEY", timeout_s, retries, at_once)
    return Remote(endpoint, Sampling(samples, 20, 0.7, 3), "Be kind.", cache / "answers.sqlite")


def echoing(request: Any) -> dict[str, Any]:
    return completion(f"You say: {request['messages'][-1]['content']} ({request['seed']})")


def test_an_endpoint_reads_the_conversation_and_is_not_paid_twice(tmp_path: Path) -> None:
    """System text and roles go out; each sample has its seed; a second run asks nothing."""
    asked = prompts(3)
    with FaultyServer(echoing) as server:
        first = remote(server, tmp_path, samples=2).answers(asked)
        heard = len(server.heard)
        again = remote(server, tmp_path, samples=2).answers(asked)
    assert heard == 6 == len(server.heard)
    assert first == again
    assert server.heard[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert {request["messages"][1]["role"] for request in server.heard} == {"user"}
    assert [a.text for a in first[:2]] == [f"You say: {asked[0].last_client_turn} ({seed})" for seed in (3000, 3001)]


@pytest.mark.parametrize(
    "faults",
    [[status(429)], [status(500)], [body(b"<html>")], [drop], [body(b'{"choices": []}')], [body(b'{"choices": 3}')]],
)
def test_an_endpoint_is_asked_again(faults: list[Fault], tmp_path: Path) -> None:
    with FaultyServer(echoing, faults) as server:
        answers = remote(server, tmp_path).answers(prompts(2))
    assert all(a.outcome is Outcome.STOPPED for a in answers) and len(server.heard) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(429), "429"),
        (status(503), "503"),
        (body(b"nonsense"), "JSON"),
        (hang, "no answer within"),
        (status(400, "too long"), "too long"),
    ],
)
def test_who_does_not_answer_is_recorded_with_the_reason_and_asked_again_next_time(
    fault: Fault, reason: str, tmp_path: Path
) -> None:
    """The other prompts are answered; the failure is not kept, so a second run asks once more and completes."""
    asked = prompts(3)
    with FaultyServer(echoing, [fault, fault]) as server:
        first = remote(server, tmp_path, timeout_s=1.0 if fault is hang else 5.0, at_once=1).answers(asked)
        if fault is hang:
            server.ended.set()
        second = remote(server, tmp_path).answers(asked)
    failed = [a for a in first if a.outcome is Outcome.FAILED]
    assert 1 <= len(failed) < len(asked) and all(reason in a.error and not a.text for a in failed)
    assert all(a.outcome is Outcome.STOPPED for a in second)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refused_key_or_a_wrong_address_fails_the_arm_and_nobody_else(code: int, tmp_path: Path) -> None:
    """Asked once and not again; every answer is a failure that names the key's variable."""
    with FaultyServer(echoing, [status(code)] * 9) as server:
        answers = remote(server, tmp_path, at_once=1).answers(prompts(3))
    assert len(server.heard) == 1 and len(answers) == 3
    assert all(a.outcome is Outcome.FAILED and "NO_SUCH_KEY" in a.error for a in answers)


def test_what_an_endpoint_is_told_and_what_its_filter_holds_back(tmp_path: Path) -> None:
    with FaultyServer(lambda request: completion("", "content_filter")) as server:
        endpoint = Endpoint(server.url, "m", "NO_SUCH_KEY", 5.0, 0, 4, "max_completion_tokens", temperature=False)
        [answer] = Remote(endpoint, Sampling(1, 20, 0.7, 3), "", tmp_path / "answers.sqlite").answers(prompts(1))
    assert answer.outcome is Outcome.FAILED and "filter" in answer.error
    [told] = server.heard
    assert told["max_completion_tokens"] == 20 and "max_tokens" not in told and "temperature" not in told


def test_a_truncated_answer_and_one_without_text(tmp_path: Path) -> None:
    with FaultyServer(lambda request: completion("and then", "length")) as server:
        [answer] = remote(server, tmp_path).answers(prompts(1))
    assert answer.outcome is Outcome.TRUNCATED
    with FaultyServer(lambda request: completion(None)) as server:
        [answer] = remote(server, tmp_path / "other", retries=0).answers(prompts(1))
    assert answer.outcome is Outcome.FAILED and "without text" in answer.error


# --- what is kept


def test_answers_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    """The same key asks once; another key, or a failure, asks again. What comes back is what was kept."""
    calls: list[int] = []

    def ask(outcome: Outcome = Outcome.STOPPED) -> list[Answer]:
        calls.append(1)
        return [Answer("a#1", 0, "Hi ~ \u00e9", outcome, "", {"emotion": "joy"}, (-1.5, -0.25)), Answer("a#1", 1, "")]

    first = kept(tmp_path, "arm-test", {"weights": "1"}, ask)
    assert kept(tmp_path, "arm-test", {"weights": "1"}, ask) == first and len(calls) == 1
    kept(tmp_path, "arm-test", {"weights": "2"}, ask)
    assert len(calls) == 2
    for _ in range(2):
        kept(tmp_path, "arm-test", {"weights": "3"}, lambda: ask(Outcome.FAILED))
    assert len(calls) == 4


def test_keys_see_weights_and_prompts(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1" * 100)
    before = model_key(str(tmp_path), "")
    assert model_key(str(tmp_path), "") == before
    (tmp_path / "model.safetensors").write_bytes(b"1" * 99 + b"2")
    assert model_key(str(tmp_path), "") != before
    assert model_key("org/name", "v1") != model_key("org/name", "v2")
    asked = prompts(3)
    assert prompts_key(asked) == prompts_key(prompts(3)) != prompts_key(asked[:2])


def test_a_hub_models_key_follows_its_commit(tmp_path: Path) -> None:
    """A name whose branch has moved on is another model: its answers are asked for again."""
    hub = tmp_path / "hub" / "models--org--name"

    def key_at(commit: str) -> str:
        snapshot = hub / "snapshots" / commit
        for folder in (hub / "refs", snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        (hub / "refs" / "main").write_text(commit)
        (snapshot / "config.json").write_text("{}")
        code = "from eval.answer_cache import model_key; print(model_key('org/name', ''))"
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        asked = [sys.executable, "-c", code]
        return subprocess.run(
            asked, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    first, second = "a" * 40, "b" * 40
    assert (key_at(first), key_at(second)) == (f"org/name@{first}", f"org/name@{second}")


# --- what is found


def test_a_judges_figures_are_its_own_answers(tmp_path: Path) -> None:
    """Over real HTTP: every criterion is the mean of the judge's shares of yes, the whole their mean; an endpoint that answers
    nonsense throughout is an error and no zero."""
    pairs = pair_up(prompts(4), [f"Reply {i}." for i in range(4)])

    def judged(request: Any) -> dict[str, Any]:
        agrees = "Reply 0" in request["messages"][1]["content"]
        return completion("\n".join(f"{item}: {'yes' if agrees or item < 3 else 'no'}" for item in (1, 2, 3, 4)))

    names = ["judge", "judge/professionalism", "judge/context_relevance"]
    with FaultyServer(judged, [status(429), body(b"<html>")]) as server:
        instruments = judge_at(server)
        found = measure(names, pairs, instruments)
    assert {name: found[name].values_N.tolist() for name in names} == {name: [1.0, 0.5, 0.5, 0.5] for name in names}
    assert found["judge"].value == pytest.approx(0.625)
    with FaultyServer(lambda request: completion("I would say so.")) as server, pytest.raises(RewardError):
        measure(["judge"], pairs, judge_at(server))


def judge_at(server: FaultyServer) -> Instruments:
    judge = JudgeConfig(url=server.url, model="m", retries=1, timeout_s=5.0)
    return Instruments(MetricsConfig(rewards=RewardsConfig(crisis=CrisisConfig(classifier=False), judge=judge)))


def test_figures_are_those_of_the_metrics_and_the_reference_is_its_own_likeness(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts()
    found = findings_of(chosen, {"plain": Echo().answers(asked), "made": Reference().answers(asked)}, asked)
    alone = measure(["rouge_l", "bleu", "distinct_2"], pair_up(asked, [p.last_client_turn for p in asked]), RULES)
    for name, measured in alone.items():
        assert found.figures["test", "plain", name][0].value == pytest.approx(measured.value, abs=1e-12)
    assert found.figures["test", "made", "rouge_l"][0].value == 1.0
    [difference] = [one for one in found.differences["test"] if one.metric == "rouge_l"]
    assert (difference.first, difference.second) == ("made", "plain") and difference.significant
    rows = {(row.arm, row.pair.prompt_id): row for row in found.rows}
    assert rows["made", "d0#0"].values["rouge_l"] == 1.0 and len(rows) == 2 * len(asked)


def test_a_failure_is_no_zero_and_leaves_the_pairing_whole(tmp_path: Path) -> None:
    """One arm fails on two of twelve prompts: both arms are measured on the other ten, it is said, and the rows have the reason."""
    chosen, asked = suite(tmp_path), prompts()
    made = Reference().answers(asked)
    made[3] = Answer(made[3].prompt_id, 0, "", Outcome.FAILED, "status 500")
    made[7] = Answer(made[7].prompt_id, 0, "", Outcome.FAILED, "status 500")
    found = findings_of(chosen, {"plain": Echo().answers(asked), "made": made}, asked)
    assert found.figures["test", "made", "rouge_l"][0].value == 1.0
    assert {count for _, count in found.figures.values()} == {10}
    assert found.missing["test"] == {"some arm gave no answer": 2}
    assert any("2 prompts of test are left out" in note for note in found.notes)
    broken = [row for row in found.rows if row.answer.error]
    assert len(broken) == 2 and all(not row.values for row in broken)
    table = replies(found.rows).to_pylist()
    assert len(table) == 24 and sum(row["score/rouge_l"] is None for row in table) == 4


def test_an_arm_that_mostly_fails_takes_nobody_along(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts()
    dead = [Answer(p.id, 0, "", Outcome.FAILED, "status 503") for p in asked]
    found = findings_of(chosen, {"plain": Echo().answers(asked), "made": dead}, asked)
    assert {arm for _, arm, _ in found.figures} == {"plain"} and not found.differences["test"]
    assert any("made failed on 12 of 12" in note and "status 503" in note for note in found.notes)
    told, warned = sentences(chosen, found), warnings(chosen, found, {})
    assert "made" not in " ".join(told) and any("made failed" in line for line in warned)
    assert "nan" not in markdown(chosen, found, told, warned)


def test_empty_replies_are_measured_as_such(tmp_path: Path) -> None:
    """An arm that says nothing has likeness 0 and 0 words, and is no failure."""
    chosen, asked = suite(tmp_path), prompts()
    found = findings_of(chosen, {"plain": said(lambda p: "", asked), "made": Reference().answers(asked)}, asked)
    assert (
        found.figures["test", "plain", "mean_words"][0].value == 0 == found.figures["test", "plain", "rouge_l"][0].value
    )
    assert any("collapsed" in line for line in warnings(chosen, found, {}))


def test_p_values_are_corrected_over_all_corpora(tmp_path: Path) -> None:
    chosen = suite(tmp_path, SMALL.replace("[corpora.test]", "[corpora.test]\n[corpora.other]"))
    asked = prompts()
    part = Asked(asked, {}, {"plain": Echo().answers(asked), "made": Reference().answers(asked)}, {})
    found = find(chosen, {"test": part, "other": part}, RULES, lambda line: None)
    every = [one for corpus in found.differences.values() for one in corpus]
    assert [one.p_holm for one in every] == pytest.approx(holm([one.p for one in every]), nan_ok=True)
    assert len({one.p_holm for one in every if not math.isnan(one.p)} - {one.p for one in every}) > 0


def test_arms_that_are_alike_are_not_said_to_differ(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts()
    found = findings_of(chosen, {"plain": Echo().answers(asked), "made": Echo().answers(asked)}, asked)
    told = " ".join(sentences(chosen, found))
    assert "beyond chance" in told and "better" not in told and " 0 are significant" in told


def test_the_sentences_say_which_way_is_better(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts(40)
    found = findings_of(chosen, {"plain": said(lambda p: "I see", asked), "made": Reference().answers(asked)}, asked)
    [first, *_] = sentences(chosen, found)
    assert (
        "made against plain" in first
        and "better in" in first
        and "rouge_l" in first
        and "different in mean_words" in first
    )
    worse = findings_of(chosen, {"made": said(lambda p: "I see", asked), "plain": Reference().answers(asked)}, asked)
    assert "worse in" in sentences(chosen, worse)[0]


def test_metrics_that_a_corpus_cannot_serve(tmp_path: Path) -> None:
    """None of its prompts: left out there, and said. Some of them: an error that names one. No corpus at all: an error."""
    text = SMALL.replace('"mean_words"', '"mean_words", "emotion_head"')
    chosen, asked = suite(tmp_path, text.replace("[corpora.test]", "[corpora.test]\n[corpora.other]")), prompts(4)
    without = [Prompt(p.id, p.token_ids, p.history, p.reference) for p in asked]
    served, notes = usable(chosen, {"test": asked, "other": without}, RULES)
    assert "emotion_head" in served["test"] and "emotion_head" not in served["other"]
    assert any("emotion_head" in note and "other" in note for note in notes)
    with pytest.raises(ValueError, match=r"d0#0.*complete the corpus"):
        usable(chosen, {"test": [without[0], *asked[1:]], "other": asked}, RULES)
    with pytest.raises(ValueError, match="by none"):
        usable(chosen, {"test": without, "other": without}, RULES)


@pytest.mark.parametrize("name", ["meteor", "preference", "judge", "judge/professionalism"])
def test_settings_that_a_metric_needs_are_asked_for_before_anything_runs(name: str, tmp_path: Path) -> None:
    chosen = suite(tmp_path, SMALL.replace('"bleu"', f'"{name}"'))
    with pytest.raises(ValueError, match=rf"metric {name} needs .*rewards\."):
        usable(chosen, {"test": prompts(2)}, RULES)


def test_beams_have_columns_of_their_own(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts()
    decoded = {4: {"plain": Echo().answers(asked[:6]), "made": Reference().answers(asked[:6])}}
    part = Asked(asked, {}, {"plain": Echo().answers(asked), "made": Reference().answers(asked)}, decoded)
    found = find(chosen, {"test": part}, RULES, lambda line: None)
    assert found.figures["test", "made", "beam_rouge_1/4"] == (found.figures["test", "made", "beam_rouge_1/4"][0], 6)
    assert found.figures["test", "made", "beam_rouge_1/4"][0].value == pytest.approx(100)
    assert "beam_rouge_1/4" in markdown(chosen, found, [], [])


def test_tables_hold_the_figures(tmp_path: Path) -> None:
    """table.csv has each figure to the last bit, table.md the same to three digits, results.json without a nan."""
    other = '[arms.other]\nkind = "endpoint"\nurl = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
    chosen, asked = suite(tmp_path, SMALL + other), prompts()
    answers = {
        name: arm.answers(asked)
        for name, arm in (("plain", Echo()), ("gold", Reference()), ("made", Reference()), ("other", Echo()))
    }
    found = findings_of(chosen, answers, asked)
    rows = list(csv.DictReader(io.StringIO(comma_separated(chosen, found))))
    assert len(rows) == len(found.figures)
    for row in rows:
        figure, count = found.figures[row["corpus"], row["arm"], row["metric"]]
        assert float(row["value"]) == figure.value and int(row["replies"]) == count
        assert (row["difference"] == "") == (row["arm"] in ("plain", "gold"))
    shown = markdown(chosen, found, ["A sentence."], ["A warning."])
    assert "| made | **1.000**\\* [1.000, 1.000] |" in shown and "A sentence." in shown and "not a substitute" in shown
    parts = {"test": Asked(asked, {}, answers, {})}
    document = results_json(
        chosen, found, parts, {}, {"plain": 0.1, "made": None, "gold": None, "other": 1.0}, {}, [], []
    )
    assert {row["group"] for row in document["metrics"]} == {"likeness", "variety", "length", "safety"}
    assert all(figure["value"] is None or math.isfinite(figure["value"]) for figure in document["figures"])


def test_yardsticks_are_not_tested_nor_called_best(tmp_path: Path) -> None:
    """The therapist and the echo have figures and intervals, no p-values: they would only make the correction harder."""
    chosen, asked = suite(tmp_path, SMALL.replace('against = "plain"', 'against = "made"')), prompts()
    answers = {
        "plain": Echo().answers(asked),
        "gold": Reference().answers(asked),
        "made": said(lambda p: p.reference[:9], asked),
    }
    found = findings_of(chosen, answers, asked)
    assert found.differences["test"] == [] and found.figures["test", "gold", "rouge_l"][0].value == 1.0
    assert "| therapist | 1.000 [1.000, 1.000] |" in markdown(chosen, found, [], [])


@pytest.mark.parametrize(("count", "possible"), [(12, False), (60, True)])
def test_a_large_difference_can_be_significant_where_there_are_enough_units(
    count: int, possible: bool, tmp_path: Path
) -> None:
    """Arms that differ as much as can be, many of them: over 20 dialogues they pass, by more draws where the first were too few;
    over 4 none could, and the warnings say so instead of calling the arms alike."""
    more = "".join(f'[arms.m{i}]\nkind = "endpoint"\nurl = "http://127.0.0.1:1/v1"\nmodel = "m"\n' for i in range(19))
    text = SMALL.replace('by = "prompt"', 'by = "dialogue"').replace("draws = 400", "draws = 100") + more
    chosen, asked = (
        suite(tmp_path, text.replace('"distinct_2", "mean_words", "duplicate_rate", "safety/gated"', '"mean_words"')),
        prompts(count),
    )
    answers = {"plain": said(lambda p: "Hm", asked), **{f"m{i}": Reference().answers(asked) for i in range(19)}}
    found = findings_of(chosen, answers, asked)
    likeness = [one for one in found.differences["test"] if one.metric == "rouge_l"]
    assert len(likeness) == 19 and all(one.significant is possible for one in likeness)
    assert any("no difference, however large" in note for note in found.notes) is not possible


def test_an_arm_is_not_praised_for_what_it_was_paid_for(tmp_path: Path) -> None:
    chosen, asked = suite(tmp_path), prompts()
    found = findings_of(chosen, {"plain": Echo().answers(asked), "made": Reference().answers(asked)}, asked)
    warned = " ".join(warnings(chosen, found, {"made": ["rouge", "emotion"]}))
    assert "made was paid for what these metrics see: rouge_l." in warned
    assert "paid" not in " ".join(warnings(chosen, found, {"made": ["emotion"]}))


def key_of(tmp_path: Path, text: str, name: str, *argv: str) -> dict[str, Any]:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    models = {arm: Model(str(model)) for arm in ("sft", "best")}
    return _Arm(suite(tmp_path, text, *argv), name, models, {}).key


BOTH = SMALL + '[arms.sft]\nmodel = "x"\n[arms.best]\nkind = "best_of"\nof = "sft"\n'


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("sft", ["--arms.sft.dtype", "float32"]),
        ("sft", ["--generation.max_tokens", "9"]),
        ("sft", ["--generation.temperature", "0.5"]),
        ("sft", ["--generation.system", "Be kind."]),
        ("sft", ["--generation.samples", "2"]),
        ("sft", ["--seed", "1"]),
        ("best", ["--arms.sft.dtype", "float32"]),
        ("best", ["--arms.best.candidates", "3"]),
        ("best", ["--arms.best.reward", "gpt2_local"]),
        ("made", ["--arms.made.url", "http://other/v1"]),
        ("made", ["--arms.made.model", "n"]),
        ("made", ["--arms.made.limit", "max_completion_tokens"]),
    ],
)
def test_whatever_changes_an_answer_changes_its_key(name: str, argv: list[str], tmp_path: Path) -> None:
    assert key_of(tmp_path, BOTH, name) == key_of(tmp_path, BOTH, name)
    assert key_of(tmp_path, BOTH, name, *argv) != key_of(tmp_path, BOTH, name)


def test_what_changes_no_answer_changes_no_key(tmp_path: Path) -> None:
    """Titles, resamples, other metrics; with perplexity the engines' limit counts, since references are cut there."""
    words = [
        "--draws",
        "900",
        "--arms.sft.title",
        "SFT",
        "--arms.made.timeout_s",
        "9",
        "--metrics",
        "rouge_l",
        "token_f1",
    ]
    assert key_of(tmp_path, BOTH, "sft", *words) == key_of(tmp_path, BOTH, "sft")
    limit, scored = ["--rollout.max_model_len", "2048"], ["--metrics", "rouge_l", "perplexity"]
    assert key_of(tmp_path, BOTH, "sft", *limit) == key_of(tmp_path, BOTH, "sft")
    assert key_of(tmp_path, BOTH, "sft", *scored, *limit) != key_of(tmp_path, BOTH, "sft", *scored)


def test_trained_runs_are_named_by_all_that_made_them(tmp_path: Path) -> None:
    """Another setting, corpus or starting model makes another run; another title does not."""
    corpus = tmp_path / "c.jsonl"
    turns = [{"speaker": "client", "text": "I am sad."}, {"speaker": "therapist", "text": "What makes you sad?"}]

    def write(word: str) -> None:
        rows = [[{"speaker": "client", "text": f"I am sad, {i}."}, turns[1]] for i in range(12)]
        corpus.write_text(
            "".join(json.dumps({"id": f"s{i}", "topic": word, "turns": row}) + "\n" for i, row in enumerate(rows))
        )

    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text("{}")

    def name(*argv: str, command: str = f"sft sft_local --model.path {start}") -> str:
        text = (
            SMALL.replace("[corpora.test]", f'[corpora.test]\nformat = "jsonl"\npath = "{corpus}"')
            + f'[arms.m]\ntrain = ["{command}"]\n'
        )
        [recipe] = recipes(suite(tmp_path, text, *argv), "m")
        return _named(recipe).name

    write("loss")
    first = name()
    assert name("--arms.m.title", "Other") == first
    assert name("--seed", "3") != first
    assert name(command=f"sft sft_local --model.path {start} --sft.lr 1e-5") != first
    (start / "config.json").write_text("{ }")
    assert name() != first
    (start / "config.json").write_text("{}")
    write("work")
    assert name() != first
