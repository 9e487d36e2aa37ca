"""`attune evaluate SUITE`: arms x corpora x metrics -> tables, every reply, a report. Run again, it goes on where it stood."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.folders import FolderInUse, held
from cluster.placement import NO_DEVICES, Claim, Placement, connect, has_gpus, require_room
from cluster.tracking import Stages
from eval.answer_cache import kept, model_key, prompts_key
from eval.arms import Answer, BestOf, Echo, Engine, Reference, Remote, Subject
from eval.decoder import DecoderSpec
from eval.endpoint import Endpoint
from eval.fleet import FLEET as DECODER
from eval.fleet import DecoderFleet
from eval.instruments import Instruments
from eval.suite_config import ArmConfig, Suite
from eval.suite_findings import sentences, warnings
from eval.suite_results import Asked, Findings, find, usable
from eval.suite_table import comma_separated, markdown, replies
from eval.vera_mh.converse import Conversation
from rl.records import write_atomically
from rl.suite_crisis import patients_with, rate
from rl.suite_json import results_json
from rl.suite_training import Model, make, recipes
from rollout.chat import Chat, PromptTooLong
from rollout.corpora import load as load_corpus
from rollout.engine_config import RolloutConfig
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import RolloutFleet, engine_spec
from rollout.prompts import asked as as_tokens
from rollout.prompts import crisis_questions, questions
from rollout.tokenizer import load_tokenizer
from rollout.types import Prompt, RolloutEngine, Sampling

LOCK, RESULTS = ".lock", "results.json"
_TOO_LONG = "the last client turn is longer than generation.max_context_tokens"


@dataclass(frozen=True)
class Question:
    """A corpus to ask: its prompts without tokens, and where they come from."""

    prompts: Sequence[Prompt]
    provenance: Mapping[str, Any]


def run(suite: Suite) -> Path:
    """Evaluate a suite; the directory with `table.md`, `table.csv`, `replies.parquet`, `results.json` and `report.html`.

    Everything that can be wrong is looked at first: settings, metrics, corpora, recipes. Then arms are trained that have to be,
    each one answers, and what they said is measured. Answers are kept by what they depend on, so that the same command goes on.
    Raises ValueError (settings, input), RewardError (a judge gives nothing), and what training raises.
    """
    stage = Stages()
    with _claimed(suite):
        instruments = Instruments(suite.settings.measure)
        with stage("reading corpora and settings"):
            asked = {name: _questions(suite, name) for name in suite.corpora}
            usable(suite, {name: part.prompts for name, part in asked.items()}, instruments)
            for name in suite.arms:
                recipes(suite, name)
        with stage("connecting to Ray"):
            connect()
        models: dict[str, Model] = {}
        for name, arm in suite.arms.items():
            if arm.kind == "model":
                with stage(f"arm {name}: its model") if arm.train else nullcontext():
                    models[name] = make(suite, name, models, print)
        chats = {
            name: Chat(load_tokenizer(m.source, m.revision), system=suite.settings.generation.system)
            for name, m in models.items()
        }
        parts, talks, seconds = _answers(suite, asked, models, chats, stage)
        with stage("measuring"):
            rate(suite, talks)
            findings = find(suite, parts, instruments, lambda line: print(f"  {line}", flush=True))
        _write(suite, asked, findings, models, parts, seconds)
    return suite.directory


@contextmanager
def _claimed(suite: Suite) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(held(suite.directory, LOCK))
        except FolderInUse as error:
            raise ValueError(
                f"suite directory {suite.directory} is in use by {error}; wait for it, or choose another --name"
            ) from None
        except OSError as error:
            raise ValueError(
                f"suite directory {suite.directory} must be a folder to write in, is none ({error.strerror}); choose another --runs"
            ) from error
        yield


def _questions(suite: Suite, name: str) -> Question:
    """At most `prompts` of a corpus's questions, evenly spread."""
    part = suite.corpora[name]
    if part.questions == "crisis":
        found = crisis_questions()
        provenance: dict[str, Any] = {"format": "crisis", "licence": "Apache-2.0 (written for this project)"}
    else:
        corpus = load_corpus(part)
        found = list(questions(corpus.splits[part.split], min_reference_words=part.min_reference_words))
        provenance = dict(corpus.provenance)
    if len(found) < 2:
        raise ValueError(
            f"corpora.{name} must hold two prompts at least, holds {len(found)} in its {part.split} split: take another split, or "
            "lower min_reference_words"
        )
    count = min(part.prompts or len(found), len(found))
    return Question([found[place * len(found) // count] for place in range(count)], provenance)


def _answers(
    suite: Suite, asked: Mapping[str, Question], models: Mapping[str, Model], chats: Mapping[str, Chat], stage: Stages
) -> tuple[dict[str, Asked], dict[str, list[Conversation]], dict[str, float]]:
    """Every arm's answers on every corpus, the conversations with patients in danger, and the seconds that each arm took."""
    limit = suite.settings.generation.max_context_tokens
    tokens: dict[str, dict[str, dict[str, Prompt]]] = {}
    fit: dict[str, list[Prompt]] = {}
    left_out: dict[str, Counter[str]] = {}
    for corpus, question in asked.items():
        tokens[corpus] = {arm: _tokenised(question.prompts, chat, limit) for arm, chat in chats.items()}
        fit[corpus] = [p for p in question.prompts if all(p.id in known for known in tokens[corpus].values())]
        left_out[corpus] = Counter({_TOO_LONG: len(question.prompts) - len(fit[corpus])})
        if len(fit[corpus]) < 2:
            raise ValueError(
                f"generation.max_context_tokens = {limit} must leave two prompts of corpora.{corpus} at least, leaves "
                f"{len(fit[corpus])} of {len(question.prompts)}: raise it"
            )
    answers: dict[str, dict[str, list[Answer]]] = {corpus: {} for corpus in asked}
    beams: dict[str, dict[int, dict[str, list[Answer]]]] = {
        corpus: {size: {} for size in _sizes(suite, corpus)} for corpus in asked
    }
    seconds: dict[str, float] = {}
    talks: dict[str, list[Conversation]] = {}
    for name, arm in suite.arms.items():
        began = time.monotonic()
        own = arm.of or name
        prompts = {
            corpus: [tokens[corpus][own][p.id] for p in fit[corpus]] if own in chats else fit[corpus]
            for corpus in asked
        }
        with (
            stage(f"arm {name}: {sum(map(len, prompts.values()))} prompts"),
            _subject(suite, name, models, chats) as subject,
        ):
            for corpus in asked:
                key = {**_key(suite, arm, models.get(own)), "prompts": prompts_key(prompts[corpus])}
                ask = _asking(subject, prompts[corpus])
                answers[corpus][name] = kept(suite.directory / "cache", f"{name}-{corpus}", key, ask)
            if name in suite.settings.crisis.arms:
                key = _key(suite, arm, models.get(own))
                talks[name] = patients_with(suite, name, key, chats.get(own), subject)
        if arm.kind == "model" and suite.settings.beams.sizes:
            with stage(f"arm {name}: beams"), _decoder(suite, models[name], arm, chats[name]) as decode:
                for corpus in asked:
                    for size in beams[corpus]:
                        few = prompts[corpus][: suite.settings.beams.prompts]
                        key = {
                            **_key(suite, arm, models[name]), "beams": {**asdict(suite.settings.beams), "sizes": size},
                            "prompts": prompts_key(few),
                        }  # fmt: skip
                        beams[corpus][size][name] = kept(
                            suite.directory / "cache", f"{name}-{corpus}-beams{size}", key, _decoding(decode, few, size)
                        )
        seconds[name] = time.monotonic() - began
    return {c: Asked(fit[c], left_out[c], answers[c], beams[c]) for c in asked}, talks, seconds


def _asking(subject: Callable[[], Subject], prompts: Sequence[Prompt]) -> Callable[[], Sequence[Answer]]:
    return lambda: subject().answers(prompts)


def _decoding(
    decode: Callable[[Sequence[Prompt], int], list[Answer]], prompts: Sequence[Prompt], size: int
) -> Callable[[], Sequence[Answer]]:
    return lambda: decode(prompts, size)


def _sizes(suite: Suite, corpus: str) -> tuple[int, ...]:
    return suite.settings.beams.sizes if suite.corpora[corpus].questions == "dialogues" else ()


def _tokenised(prompts: Sequence[Prompt], chat: Chat, limit: int) -> dict[str, Prompt]:
    found = {}
    for prompt in prompts:
        try:
            found[prompt.id] = as_tokens(prompt, chat, limit)
        except PromptTooLong:
            continue
    return found


def _key(suite: Suite, arm: ArmConfig, model: Model | None) -> dict[str, Any]:
    """All that an arm's answers depend on, besides its prompts."""
    weights = model_key(model.source, model.revision) if model else ""
    chosen_by = recipe_rewards(arm.reward) if arm.kind == "best_of" else {}
    return {
        "kind": arm.kind, "weights": weights, "dtype": arm.dtype, "url": arm.url, "model": arm.model if arm.url else "",
        "candidates": arm.candidates if arm.kind == "best_of" else 1, "reward": chosen_by,
        "generation": asdict(suite.settings.generation), "seed": suite.settings.seed, "references": _wants_references(suite),
    }  # fmt: skip


def recipe_rewards(name: str) -> dict[str, Any]:
    """The reward settings of a recipe, for the key of what was chosen by them."""
    return asdict(_recipe_of(name).rewards)


def _recipe_of(name: str):  # type: ignore[no-untyped-def]
    from cluster.settings import load
    from rl.config import PpoRecipe
    from rl.recipe_files import find as find_recipe

    return load(PpoRecipe, find_recipe(name))


def _wants_references(suite: Suite) -> bool:
    return "perplexity" in suite.settings.metrics


@contextmanager
def _subject(
    suite: Suite, name: str, models: Mapping[str, Model], chats: Mapping[str, Chat]
) -> Iterator[Callable[[], Subject]]:
    """How to get what answers for an arm; engines start when it is called first, and end with the block."""
    arm, generation = suite.arms[name], suite.settings.generation
    sampling = Sampling(generation.samples, generation.max_tokens, generation.temperature, suite.settings.seed)
    match arm.kind:
        case "echo":
            yield lambda: Echo(generation.samples)
        case "reference":
            yield lambda: Reference(generation.samples)
        case "endpoint":
            endpoint = Endpoint(arm.url, arm.model, arm.key_env, arm.timeout_s, arm.retries, arm.concurrency)
            cache = suite.directory / "cache"
            cache.mkdir(parents=True, exist_ok=True)
            yield lambda: Remote(endpoint, sampling, generation.system, cache / "endpoint.sqlite")
        case "model" | "best_of":
            own = arm.of or name
            with ExitStack() as stack:
                engines: list[RolloutEngine] = []

                def engine() -> Subject:
                    if not engines:
                        engines.append(stack.enter_context(_engines(suite, models[own], suite.arms[own], chats[own])))
                    single = Engine(
                        engines[0],
                        chats[own],
                        sampling,
                        suite.settings.rollout.max_model_len if arm.kind == "model" and _wants_references(suite) else 0,
                    )
                    return single if arm.kind == "model" else _best_of(arm, single)

                yield engine


def _best_of(arm: ArmConfig, engine: Engine) -> Subject:
    from rewards.mixture import LocalReward, Mixture
    from rewards.panel import Panel

    rewards = _recipe_of(arm.reward).rewards
    return BestOf(engine, LocalReward(Panel(rewards), Mixture(rewards)), arm.candidates)


@contextmanager
def _engines(suite: Suite, model: Model, arm: ArmConfig, chat: Chat) -> Iterator[RolloutEngine]:
    rollout: RolloutConfig = suite.settings.rollout
    claims = [Claim(ROLLOUT, rollout.engines, rollout.cpus, rollout.tensor_parallel if has_gpus() else 0)]
    require_room(claims)
    placement = Placement(claims)
    try:
        fleet = RolloutFleet(
            engine_spec(rollout, model.source, model.revision, arm.dtype, chat.end_ids), rollout.engines, placement,
            restarts=rollout.restarts,
        )  # fmt: skip
        fleet.ready()
        yield fleet
    finally:
        placement.release()


@contextmanager
def _decoder(
    suite: Suite, model: Model, arm: ArmConfig, chat: Chat
) -> Iterator[Callable[[Sequence[Prompt], int], list[Answer]]]:
    """A decoder with beams that starts when it is asked first."""
    beams, gpus = suite.settings.beams, has_gpus()
    with ExitStack() as stack:
        fleets: list[DecoderFleet] = []

        def decode(prompts: Sequence[Prompt], size: int) -> list[Answer]:
            if not fleets:
                claims = [
                    Claim(
                        DECODER,
                        beams.decoders,
                        suite.settings.rollout.cpus,
                        suite.settings.rollout.tensor_parallel if gpus else 0,
                    )
                ]
                require_room(claims)
                placement = Placement(claims)
                stack.callback(placement.release)
                spec = DecoderSpec(model.source, model.revision, arm.dtype, chat.end_ids, gpus)
                threads = str(max((os.cpu_count() or 1) // beams.decoders, 1))
                environment = {"OMP_NUM_THREADS": threads, **({} if gpus else NO_DEVICES)}
                fleets.append(DecoderFleet(spec, beams.decoders, placement, environment))
            return fleets[0].decode(
                prompts, beams=size, sample=beams.sample, max_tokens=beams.max_tokens, seed=suite.settings.seed
            )

        yield decode


def _write(
    suite: Suite,
    asked: Mapping[str, Question],
    findings: Findings,
    models: Mapping[str, Model],
    parts: Mapping[str, Asked],
    seconds: Mapping[str, float],
) -> None:
    """Tables, replies, results and the report, each whole or not at all."""
    from eval.suite_report import write_suite_report

    directory = suite.directory
    told, warned = sentences(suite, findings), warnings(suite, findings)
    write_atomically(directory / "table.md", markdown(suite, findings, told, warned))
    write_atomically(directory / "table.csv", comma_separated(suite, findings))
    partial = directory / ".replies.parquet.partial"
    pq.write_table(replies(findings.rows), partial)
    os.replace(partial, directory / "replies.parquet")
    provenance = {name: dict(part.provenance) for name, part in asked.items()}
    results = results_json(suite, findings, parts, models, seconds, provenance, told, warned)
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, default=str) + "\n")
    write_suite_report(directory)
