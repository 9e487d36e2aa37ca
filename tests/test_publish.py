"""What a publish sends, what it refuses to begin, and how it ends when somebody does not answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from torch import Tensor

from cluster.placement import Placement, connect, has_gpus
from cluster.pool import ReplicaSilent
from rl.config import LoraConfig, ModelConfig, PpoRecipe, PublishConfig, Shape, TinyConfig
from rl.fleet import LearnerFleet, PublishHung
from rl.intake import check_publish
from rl.layout import claims
from rl.policy import ActorCritic
from rl.ppo import spec_of
from rl.tiny import build
from rl.zero import AdapterStream, PolicyStream
from rollout.fleet import FLEET, EngineLost, RolloutFleet
from rollout.tokenizer import train_tokenizer
from rollout.types import Dialogue, Speaker, Turn
from rollout.weight_stream import (
    AdapterUpdate,
    SharedMemorySender,
    SharedMemoryUpdate,
    WeightGroup,
    WeightStream,
    read_shared_memory,
)
from tests.tiny import TARGETS, quick_recipe, save_tiny

SHAPES: tuple[Shape, ...] = ("gpt2", "mistral", "mixtral")
PROBES = [(tuple(range(10, 30)), tuple(range(40, 60)))]


def perturbed_policy(shape: Shape) -> tuple[ActorCritic, ModelConfig]:
    """A policy and a critic adapter, both far from where they begin."""
    torch.manual_seed(0)
    letters = Dialogue("d", tuple(Turn(Speaker.CLIENT, chr(letter)) for letter in range(97, 123)))
    tokenizer = train_tokenizer([letters], 300)
    tiny = TinyConfig(shape=shape, hidden=32, heads=2, layers=2, experts=4, context=64)
    recipe = PpoRecipe(model=ModelConfig(tuning="lora", dtype="float32")).model
    model = ModelConfig(tuning="lora", dtype="float32", lora=type(recipe.lora)(4, 12.0, TARGETS[shape]))
    policy = ActorCritic(model, lambda: build(tiny, tokenizer))
    with torch.no_grad():
        for held in policy.trainable().values():
            for parameter in held:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return policy, model


def tensors(stream: PolicyStream) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for group in stream for name, tensor in group.tensors}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_says_what_the_merged_weights_say(shape: Shape) -> None:
    """base + alpha / rank * B A, of the tensors and names that an adapter publish sends, is what a merged one sends for every
    adapted module and tensor; GPT-2 keeps its weights the other way round. The critic's adapter is no part of it."""
    policy, model = perturbed_policy(shape)
    adapter = AdapterStream(policy.policy)
    merged = tensors(PolicyStream(policy.policy, only_trained=True))
    sent = tensors(adapter)
    modules = sorted({name.rpartition(".lora_")[0] for name in sent})
    assert len(modules) == 2 * len(TARGETS[shape]) and len(sent) == 2 * len(modules)
    assert {spec.name: spec.shape for spec in adapter.specs()} == {name: tuple(t.shape) for name, t in sent.items()}
    for module in modules:
        a_RI, b_OR = sent[f"{module}.lora_A.weight"], sent[f"{module}.lora_B.weight"]
        delta_OI = model.lora.alpha / model.lora.rank * b_OR @ a_RI
        base = policy.policy.get_submodule(module).get_base_layer().weight  # type: ignore[operator]
        expected = base + (delta_OI.T if shape == "gpt2" else delta_OI)
        torch.testing.assert_close(merged[f"{module}.weight"], expected)
        assert float((expected - base).detach().abs().max()) > 0.1
    least = sum(spec.bytes for spec in adapter.specs())
    assert least < sum(t.numel() * t.element_size() for t in merged.values())


@dataclass
class Client:
    """The one call that an adapter publish makes of the engines; reads what it is told of, as an engine does."""

    fails: bool = False
    received: dict[str, Tensor] = field(default_factory=dict)
    update: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        if self.fails:
            raise RuntimeError("an engine failed")
        self.update, self.version = update, weight_version
        self.received = dict(read_shared_memory(SharedMemoryUpdate(**update["tensors"])))


class Noted:
    """A stream that says which of its groups were read."""

    def __init__(self, stream: WeightStream) -> None:
        self._stream, self.specs, self.passed = stream, stream.specs, list[str]()

    def __iter__(self) -> Iterator[WeightGroup]:
        for group in self._stream:
            self.passed.append(group.name)
            yield group


def test_an_adapter_arrives_whole_by_one_call() -> None:
    """Every bit of A and B with rank, alpha and version reaches the engines by one call, however small the chunks of other
    publishes; plain values describe it. When an engine fails the stream is still read to its end."""
    policy, _ = perturbed_policy("mistral")
    stream = AdapterStream(policy.policy)
    sender, client = SharedMemorySender(chunk_bytes=64), Client()
    sent = sender.send_adapter(stream, client, 7, rank=4, alpha=12.0)  # type: ignore[arg-type]
    expected = tensors(stream)
    assert sent == sum(spec.bytes for spec in stream.specs())
    assert list(client.received) == list(expected)
    assert all(torch.equal(client.received[name], tensor) for name, tensor in expected.items())
    assert (client.update["rank"], client.update["alpha"], client.version) == (4, 12.0, "7")
    assert asdict(AdapterUpdate(SharedMemoryUpdate(**client.update["tensors"]), 4, 12.0)) == client.update
    noted = Noted(stream)
    with pytest.raises(RuntimeError, match="an engine failed"):
        sender.send_adapter(noted, Client(fails=True), 8, rank=4, alpha=12.0)  # type: ignore[arg-type]
    assert noted.passed == [group.name for group in stream]


def test_what_is_sent_follows_from_what_trains() -> None:
    """auto is the changed groups of a LoRA policy and everything of a full one; a part that has no adapter is refused."""
    assert PublishConfig().part("lora") == "merged" and PublishConfig().part("full") == "full"
    assert PublishConfig(what="adapter").part("lora") == "adapter" and PublishConfig(what="full").part("lora") == "full"
    for what in ("adapter", "merged"):
        with pytest.raises(ValueError, match=rf"publish.what = {what} needs model.tuning = lora, which is full"):
            PpoRecipe(model=ModelConfig(tuning="full"), publish=PublishConfig(what=what))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"publish.timeout_s must be above 0, is 0"):
        PublishConfig(timeout_s=0)
    with pytest.raises(ValueError, match=r"publish.tolerance must be at least 0, is -1"):
        PublishConfig(tolerance=-1)
    lora = LoraConfig(target_parameters=("experts.down_proj",))
    with pytest.raises(ValueError, match=r"publish.what = adapter .*target_parameters .*set publish.what = merged"):
        PpoRecipe(model=ModelConfig(tuning="lora", lora=lora), publish=PublishConfig(what="adapter"))


@pytest.mark.parametrize("fails_behind", [0, 3, 10_000])
def test_a_broken_cuda_publish_is_gathered_to_its_end(fails_behind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM's trainer gives up before its first tensor, in the middle or behind the last, rank 0 still makes one whole pass
    over the stream, since the other ranks do, and no second; through shared device memory the failure ends the run. So it is
    where the handshake fails. Silence stays silence by either way."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    from rollout.vllm_weights import StreamSource, cuda_publish, cuda_trainer

    policy, _ = perturbed_policy("mistral")
    stream = PolicyStream(policy.policy, only_trained=True)
    noted = Noted(stream)

    class GivesUp:
        """vLLM's trainer, whose engine dies."""

        source = StreamSource(noted)
        error: Exception = EngineLost("a rollout engine died")

        @staticmethod
        def handshake(*_: object, **__: object) -> None:
            raise GivesUp.error

        def send_weights(self) -> None:
            for count, _ in enumerate(self.source if fails_behind else ()):
                if count == fails_behind:
                    break
            raise self.error

    class Anyone:
        workers = 1

        def at(self, version: int) -> Anyone:
            return self

    whole = [group.name for group in stream]
    with pytest.raises(EngineLost):
        cuda_publish("nccl", GivesUp(), Anyone(), 1)  # type: ignore[arg-type]
    assert noted.passed == whole
    with pytest.raises(RuntimeError, match="resumes from the last checkpoint"):
        cuda_publish("ipc", GivesUp(), Anyone(), 1)  # type: ignore[arg-type]
    noted.passed.clear()
    with (
        monkeypatch.context() as broken,
        pytest.raises(EngineLost),
    ):
        broken.setattr(WeightTransferTrainerFactory, "trainer_init", GivesUp.handshake)
        cuda_trainer("nccl", noted, Anyone(), rank=0)  # type: ignore[arg-type]
    assert noted.passed == whole  # those who need no handshake are in the pass already
    GivesUp.error = ReplicaSilent("rollout engine 0 of 1 does not answer new weights")
    for way in ("nccl", "ipc"):
        with pytest.raises(ReplicaSilent):
            cuda_publish(way, GivesUp(), Anyone(), 1)  # type: ignore[arg-type]


def test_an_adapter_that_the_engines_cannot_apply_is_refused_at_the_start(tmp_path: Path) -> None:
    """GPT-2 anywhere, and a mixture of experts on CPUs, whether built by the run or given as a folder; the message names the
    setting, the model and what to set. A dense model, a mixture on GPUs, and every other publish pass."""

    def recipe(shape: Shape, what: Any = "adapter", path: str = "") -> PpoRecipe:
        model = ModelConfig(tuning="lora", path=path, tiny=TinyConfig(shape=shape, heads=2, context=2048))
        return PpoRecipe(model=model, publish=PublishConfig(what=what))

    folder = str(save_tiny(tmp_path / "mixtral"))
    for refused, on_gpu, kind in (
        (recipe("gpt2"), True, "gpt2"),
        (recipe("mixtral"), False, "mixtral"),
        (recipe("mistral", path=folder), False, "mixtral"),
    ):
        with pytest.raises(ValueError, match=rf"publish.what = adapter needs .*{kind} .*; set publish.what = merged"):
            check_publish(refused, on_gpu=on_gpu)
    for passes, on_gpu in ((recipe("mistral"), False), (recipe("mixtral"), True), (recipe("gpt2", "auto"), False)):
        check_publish(passes, on_gpu=on_gpu)


class StoppingEngine:
    """An engine's side of a publish without vLLM, which stops (SIGSTOP) when it is told of new weights."""

    def __init__(self, stops: bool) -> None:
        self._stops = stops

    def ready(self) -> int:
        return os.getpid()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        assert init_info == {}

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        assert read_shared_memory(SharedMemoryUpdate(**update_info))
        if self._stops:
            os.kill(os.getpid(), signal.SIGSTOP)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert weight_version == "0"

    def end(self) -> None:
        os._exit(1)


class StoppingFleet(RolloutFleet):
    """Two engines, of which the second stops in the middle of its first update, if `stops`."""

    stops = True

    def _spawn(self, index: int) -> Any:
        options = self._placement.options(FLEET, index)
        return ray.remote(StoppingEngine).options(**options).remote(self.stops and index == 1)


def hung(recipe: PpoRecipe, folder: Path, *, stopped_rank: int | None) -> str:
    """What a publish says that hangs, on an engine or on the `stopped_rank`; nothing of it is left running."""
    connect()
    placement = Placement(claims(recipe, on_gpu=has_gpus()))
    try:
        engine = StoppingFleet(spec_of(recipe, (3,)), 2, placement, restarts=0)
        learner = LearnerFleet(recipe, placement, PROBES, folder)
        pids = learner.ready()
        if stopped_rank is not None:
            os.kill(pids[stopped_rank], signal.SIGSTOP)
        processes = [psutil.Process(pid) for pid in [*pids, *engine.ready()]]
        with pytest.raises(PublishHung) as caught:
            learner.publish(engine)
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive
        return str(caught.value)
    finally:
        placement.release()
        ray.shutdown()


def hanging_recipe(folder: Path, ranks: int, **knobs: Any) -> PpoRecipe:
    return quick_recipe(
        save_tiny(folder / "model", "mistral"), folder, model__tuning="lora", model__lora__targets=TARGETS["mistral"],
        rollout__engines=2, rollout__cpus=0.1, learner__cpus=0.1, rewards__cpus=0.1, learner__ranks=ranks, **knobs,
    )  # fmt: skip


def said_of(message: str, *parts: str) -> None:
    rest = message
    for part in ("publishing version 0 took over publish.timeout_s", *parts, "resumes from the last checkpoint"):
        _, found, rest = rest.partition(part)
        assert found, (part, message)


@pytest.mark.slow
def test_an_engine_that_stops_in_the_middle_of_an_update_is_named_with_its_tensors(tmp_path: Path) -> None:
    """A real process that gets SIGSTOP while it loads: the publish ends with the engine, the rank that waited and the tensors
    that it waited for, instead of waiting for ever; ranks and engines are gone, the stopped one too."""
    message = hung(hanging_recipe(tmp_path, 1, publish__timeout_s=20.0), tmp_path, stopped_rank=None)
    said_of(
        message,
        "rollout engine 1 of 2 does not answer new weights",
        "learner rank 0 was waiting for the engines to load model.layers.0.self_attn.",
        "to model.layers.1.self_attn.",
    )


@pytest.mark.slow
def test_a_rank_that_stops_in_a_gather_is_named_with_the_tensors(tmp_path: Path, monkeypatch: Any) -> None:
    """A real learner rank under ZeRO-3 that gets SIGSTOP: its peer hangs in the gather of the embedding, the publish ends
    with both ranks and that tensor, and neither is left running."""
    monkeypatch.setattr(StoppingFleet, "stops", False)
    recipe = hanging_recipe(tmp_path, 2, publish__timeout_s=5.0, publish__what="full", learner__zero_stage=3)
    message = hung(recipe, tmp_path, stopped_rank=1)
    said_of(message, "rank 0 of 2 was gathering model.embed_tokens", "rank 1 of 2 does not answer at all")
