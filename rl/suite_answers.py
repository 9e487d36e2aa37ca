"""What every arm of a suite says: engines, decoders and endpoints started when they are asked first, answers kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.placement import NO_DEVICES, Claim, Placement, has_gpus, require_room
from cluster.tracking import Stages
from eval.answer_cache import kept, model_key, prompts_key
from eval.arms import Answer, BestOf, Echo, Engine, Reference, Remote, Subject
from eval.decoder import DecoderSpec
from eval.endpoint import Endpoint
from eval.fleet import FLEET as DECODER
from eval.fleet import DecoderFleet
from eval.suite_config import Suite
from eval.suite_results import Asked
from eval.vera_mh.converse import Conversation
from rl.suite_crisis import patients_with
from rl.suite_prompts import Prompts, spread
from rl.suite_training import Model, reward_of
from rollout.chat import Chat
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import RolloutFleet, engine_spec
from rollout.types import Prompt, RolloutEngine, Sampling

Decode = Callable[[Sequence[Prompt], int], list[Answer]]


@dataclass
class Said:
    """All that was said: by corpus and arm; by corpus, beam size and arm; with patients. `seconds` are what an arm took to reply
    to the corpora's prompts, None where its answers were kept."""

    answers: dict[str, dict[str, list[Answer]]]
    beams: dict[str, dict[int, dict[str, list[Answer]]]]
    talks: dict[str, list[Conversation]] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)

    def asked(self, prompts: Mapping[str, Prompts]) -> dict[str, Asked]:
        """By corpus, for `eval.suite_results.find`."""
        return {c: Asked(p.plain, p.left_out, self.answers[c], self.beams[c]) for c, p in prompts.items()}


def collect(
    suite: Suite, prompts: Mapping[str, Prompts], models: Mapping[str, Model], chats: Mapping[str, Chat], stage: Stages
) -> Said:
    """Ask every arm."""
    said = Said({c: {} for c in prompts}, {c: {size: {} for size in _sizes(suite, c)} for c in prompts})
    for name in suite.arms:
        arm = _Arm(suite, name, models, chats)
        with (
            stage(f"arm {name}: {sum(len(part.plain) for part in prompts.values())} prompts"),
            arm.subject() as subject,
        ):
            for corpus, part in prompts.items():
                said.answers[corpus][name] = arm.replies(corpus, part, subject)
            said.seconds[name] = arm.seconds
            if arm.seconds is None:
                print("  its answers were kept from an earlier run", flush=True)
            if name in suite.settings.crisis.arms:
                print("  talking with the patients", flush=True)
                said.talks[name] = patients_with(suite, name, arm.key, chats.get(arm.own), subject)
        if suite.arms[name].kind == "model" and suite.settings.beams.sizes:
            with stage(f"arm {name}: beams"), arm.decoder() as decode:
                for corpus, part in prompts.items():
                    for size, found in said.beams[corpus].items():
                        found[name] = arm.beams(corpus, part, size, decode)
    return said


def _sizes(suite: Suite, corpus: str) -> tuple[int, ...]:
    return suite.settings.beams.sizes if suite.corpora[corpus].questions == "dialogues" else ()


class _Arm:
    """One arm: what its answers depend on, and how to get them. `own` is the arm whose model it is."""

    def __init__(self, suite: Suite, name: str, models: Mapping[str, Model], chats: Mapping[str, Chat]) -> None:
        self.suite, self.name, self.own = suite, name, suite.arms[name].of or name
        self.config, self.served = suite.arms[name], suite.arms[self.own]
        self.model, self.chat = models.get(self.own), chats.get(self.own)
        self.cache = suite.directory / "cache"
        self.seconds: float | None = None
        self.references = 0
        if self.config.kind == "model" and "perplexity" in suite.settings.metrics:
            self.references = suite.settings.rollout.max_model_len
        self.key = self._key()

    def _key(self) -> dict[str, Any]:
        """All that answers depend on, besides prompts."""
        arm, settings = self.config, self.suite.settings
        own: dict[str, Any] = {}
        if self.model is not None:
            own = {"weights": model_key(self.model.source, self.model.revision), "dtype": self.served.dtype}
        if arm.kind == "endpoint":
            own = {"url": arm.url, "model": arm.model, "limit": arm.limit, "temperature": arm.temperature}
        if arm.kind == "best_of":
            own |= {"candidates": arm.candidates, "reward": asdict(reward_of(arm.reward))}
        generation = asdict(settings.generation)
        return {"kind": arm.kind, **own, "generation": generation, "seed": settings.seed, "references": self.references}

    def replies(self, corpus: str, part: Prompts, subject: Callable[[], Subject]) -> list[Answer]:
        """To a corpus's prompts."""
        prompts = part.of(self.own)

        def ask() -> list[Answer]:
            answerer = subject()  # starts engines: no part of what replying takes
            began = time.monotonic()
            answers = answerer.answers(prompts)
            self.seconds = (self.seconds or 0.0) + time.monotonic() - began
            return answers

        return kept(self.cache, f"{self.name}-{corpus}", {**self.key, "prompts": prompts_key(prompts)}, ask)

    def beams(self, corpus: str, part: Prompts, size: int, decode: Decode) -> list[Answer]:
        """Of one beam size, to some of a corpus's prompts."""
        settings = self.suite.settings.beams
        few = spread(part.of(self.own), settings.prompts)
        chosen = {
            "size": size,
            "max_tokens": settings.max_tokens,
            "sample": settings.sample,
            "decoders": settings.decoders,
        }
        key = {**self.key, "references": 0, "beams": chosen, "prompts": prompts_key(few)}
        return kept(self.cache, f"{self.name}-{corpus}-beams{size}", key, lambda: decode(few, size))

    @contextmanager
    def subject(self) -> Iterator[Callable[[], Subject]]:
        """How to get what answers; engines start when it is called first, and end with the block."""
        arm, generation = self.config, self.suite.settings.generation
        sampling = Sampling(generation.samples, generation.max_tokens, generation.temperature, self.suite.settings.seed)
        with ExitStack() as stack:
            engines: list[RolloutEngine] = []

            def engine() -> Engine:
                assert self.chat is not None
                if not engines:
                    engines.append(stack.enter_context(self._engines()))
                return Engine(engines[0], self.chat, sampling, self.references)

            match arm.kind:
                case "echo":
                    yield lambda: Echo(generation.samples)
                case "reference":
                    yield lambda: Reference(generation.samples)
                case "endpoint":
                    endpoint = Endpoint(
                        arm.url,
                        arm.model,
                        arm.key_env,
                        arm.timeout_s,
                        arm.retries,
                        arm.concurrency,
                        arm.limit,
                        arm.temperature,
                    )
                    self.cache.mkdir(parents=True, exist_ok=True)
                    yield lambda: Remote(endpoint, sampling, generation.system, self.cache / "endpoint.sqlite")
                case "best_of":
                    yield lambda: _best_of(engine(), arm.reward, arm.candidates)
                case "model":
                    yield engine

    @contextmanager
    def _engines(self) -> Iterator[RolloutEngine]:
        assert self.model is not None and self.chat is not None
        rollout = self.suite.settings.rollout
        spec = engine_spec(rollout, self.model.source, self.model.revision, self.served.dtype, self.chat.end_ids)
        with _room(engine_claims(self.suite)) as placement:
            fleet = RolloutFleet(spec, rollout.engines, placement, restarts=rollout.restarts)
            fleet.ready()
            yield fleet

    @contextmanager
    def decoder(self) -> Iterator[Decode]:
        """A decoder with beams that starts when it is asked first."""
        assert self.model is not None and self.chat is not None
        model, chat, beams, gpus = self.model, self.chat, self.suite.settings.beams, has_gpus()
        with ExitStack() as stack:
            fleets: list[DecoderFleet] = []

            def decode(prompts: Sequence[Prompt], size: int) -> list[Answer]:
                if not fleets:
                    placement = stack.enter_context(_room(decoder_claims(self.suite)))
                    spec = DecoderSpec(model.source, model.revision, self.served.dtype, chat.end_ids, gpus)
                    threads = str(max((os.cpu_count() or 1) // beams.decoders, 1))
                    environment = {"OMP_NUM_THREADS": threads, **({} if gpus else NO_DEVICES)}
                    fleets.append(DecoderFleet(spec, beams.decoders, placement, environment))
                return fleets[0].decode(
                    prompts, beams=size, sample=beams.sample, max_tokens=beams.max_tokens, seed=self.suite.settings.seed
                )

            yield decode


def engine_claims(suite: Suite) -> list[Claim]:
    """What the engines of one arm ask of the cluster."""
    rollout = suite.settings.rollout
    return [Claim(ROLLOUT, rollout.engines, rollout.cpus, rollout.tensor_parallel if has_gpus() else 0)]


def decoder_claims(suite: Suite) -> list[Claim]:
    """What the decoders of one arm ask; each spreads its model over as many devices as an engine has."""
    rollout = suite.settings.rollout
    return [Claim(DECODER, suite.settings.beams.decoders, rollout.cpus, rollout.tensor_parallel if has_gpus() else 0)]


@contextmanager
def _room(claims: Sequence[Claim]) -> Iterator[Placement]:
    require_room(claims)
    placement = Placement(claims)
    try:
        yield placement
    finally:
        placement.release()


def _best_of(engine: Engine, reward: str, candidates: int) -> BestOf:
    from rewards.mixture import LocalReward, Mixture
    from rewards.panel import Panel

    config = reward_of(reward)
    return BestOf(engine, LocalReward(Panel(config), Mixture(config)), candidates)
