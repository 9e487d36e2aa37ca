"""One vLLM engine as a plain class; `rollout/fleet.py` makes Ray actors of it.

vLLM is imported where it is used: the driver names this class, and saves the ten seconds that importing vLLM takes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import psutil

from rollout.engine_config import EngineSpec
from rollout.fields import read_labels
from rollout.sharing import Rest
from rollout.tokenizer import load_tokenizer
from rollout.types import NO_ROUTING, Finish, Prompt, Rollout, Routing, Sampling, VersionSpan

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

_FINISHES = {"stop": Finish.STOPPED, "length": Finish.TRUNCATED}


UNPUBLISHED = -1  # the version of weights that came from disk, not from a learner


Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def ends_with_its_core(method: Method) -> Method:
    """End the actor when vLLM's own processes have died under it: then the fleet replaces it like any dead engine."""

    @functools.wraps(method)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await method(*args, **kwargs)
        except EngineDeadError:
            os._exit(1)

    return guarded  # type: ignore[return-value]


def reply_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one reply, from the call's seed, the prompt and the sample: independent of engine and batch."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}\0{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class VllmEngine:
    """Generates replies and log-probs, and receives weights. Methods are coroutines of one event loop."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._spec = spec
        self._requests = 0
        self._adapter: LoRARequest | None = None  # what replies are drawn with, once an adapter was published
        self._calls = 0  # of `_run` that are under way
        # held while requests are queued and while weights arrive: both pause the scheduler, and end with its resumption
        self._gate = asyncio.Lock()
        self._stale_prefixes = False  # replies under way held on to what older weights computed
        self._tokenizer = load_tokenizer(spec.model, spec.revision or "")
        os.environ.update(spec.environment)  # vLLM reads its thread binding from the environment of its processes
        if spec.threads is not None:
            cores = sorted(os.sched_getaffinity(0))[: spec.threads or None]
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=spec.model,
                revision=spec.revision,
                dtype=spec.dtype,  # type: ignore[arg-type]
                tensor_parallel_size=spec.tensor_parallel,
                # inside a placement group vLLM would choose Ray, and refuse a bundle of several devices
                distributed_executor_backend="mp" if spec.tensor_parallel > 1 else None,
                max_model_len=spec.max_model_len,
                max_num_seqs=spec.max_concurrent,
                kv_cache_memory_bytes=spec.kv_cache_bytes,
                gpu_memory_utilization=spec.memory_utilization,
                enforce_eager=spec.eager,
                enable_sleep_mode=spec.sleep_level > 0,
                enable_chunked_prefill=spec.chunked_prefill,
                max_num_batched_tokens=spec.max_batched_tokens,
                seed=0,
                skip_tokenizer_init=True,
                disable_log_stats=True,
                logprobs_mode="processed_logprobs",
                enable_return_routed_experts=spec.router_replay,
                weight_transfer_config=WeightTransferConfig(backend=spec.weight_transfer),
                worker_extension_cls="rollout.vllm_weights.WorkerExtension",
                generation_config="vllm",
                **_lora_arguments(spec.adapter_rank, spec.adapter_targets),
            )
        )
        self._rest = Rest(self._llm, spec.sleep_level)
        self._stamped = False

    @ends_with_its_core
    async def ready(self) -> int:
        """Answer once the engine can generate; returns the process id."""
        await self._llm.check_health()
        if not self._stamped:  # later it would call published weights, and replies in flight, unpublished
            await self._llm.update_weight_version(str(UNPUBLISHED))
            self._stamped = True
        return os.getpid()

    @ends_with_its_core
    async def generate(self, prompts: Sequence[Prompt], samples: Sequence[int], sampling: Sampling) -> list[Rollout]:
        """One rollout per (prompt, sample) pair, in order.

        Scheduling starts when all requests are queued, so the batches, and with them the last bits of every log-prob,
        depend on the requests alone.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = [
            SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=reply_seed(sampling.seed, prompt.id, sample),
                logprobs=0,
                stop_token_ids=list(self._spec.end_ids),
                ignore_eos=True,  # the turn ends at `end_ids`, which hold the model's eos where it ends turns
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for prompt, sample in zip(prompts, samples, strict=True)
        ]
        outputs = await self._run([prompt.token_ids for prompt in prompts], params)
        assert not self._spec.router_replay or all(o.outputs[0].routed_experts is not None for o in outputs)
        written = [o.outputs[0].token_ids for o in outputs]
        texts, raw = (self._tokenizer.batch_decode(written, skip_special_tokens=skip) for skip in (True, False))
        # labels that the policy writes first are no words to the client; as tokens they are special ones
        replies = [(read_labels(text)[1], read_labels(whole)[0]) for text, whole in zip(texts, raw, strict=True)]
        return [_rollout(p, s, o, *reply) for p, s, o, reply in zip(prompts, samples, outputs, replies, strict=True)]

    @ends_with_its_core
    async def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probs in nats at temperature 1 of the reply tokens of (prompt ids, reply ids) pairs."""
        from vllm import SamplingParams

        params = [SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False) for _ in sequences]
        # one by one: nothing is sampled, so it does not matter which of them vLLM computes together
        outputs = await self._run([[*prompt, *reply] for prompt, reply in sequences], params, together=False)
        answers = []
        for (prompt, reply), output in zip(sequences, outputs, strict=True):
            assert output.prompt_logprobs is not None
            entries = output.prompt_logprobs[len(prompt) :]
            answers.append([entry[token].logprob for entry, token in zip(entries, reply, strict=True) if entry])
        await self._forget_prefixes()
        return answers

    async def _run(
        self, inputs: Sequence[Sequence[int]], params: Sequence[SamplingParams], *, together: bool = True
    ) -> list[RequestOutput]:
        from vllm import TokensPrompt
        from vllm.outputs import RequestOutput

        queues = []
        async with self._gate:
            await self._rest.wake()
            if together:  # vLLM waits 20 ms each time that it pauses
                await self._llm.pause_generation(mode="keep", clear_cache=False)
            if self._stale_prefixes:
                await self._forget_prefixes()
            for ids, param in zip(inputs, params, strict=True):
                self._requests += 1
                prompt, number = TokensPrompt(prompt_token_ids=list(ids)), str(self._requests)
                queues.append(await self._llm.add_request(number, prompt, param, lora_request=self._adapter))
            if together:
                await self._llm.resume_generation()
            self._calls += 1
        outputs: list[RequestOutput] = []
        try:
            for queue in queues:
                output = await queue.get()
                assert isinstance(output, RequestOutput) and output.finished
                outputs.append(output)
        finally:
            self._calls -= 1
        return outputs

    @ends_with_its_core
    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    @ends_with_its_core
    async def start_weight_update(self) -> None:
        """Replies under way stop where they are until the update is finished."""
        await self._gate.acquire()
        await self._rest.wake_weights()
        if self._calls:
            await self._llm.pause_generation(mode="keep", clear_cache=False)
        await self._llm.start_weight_update()

    @ends_with_its_core
    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    @ends_with_its_core
    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Every token sampled from now on is of `weight_version`; nothing computed under older weights is reused, but for the
        attention keys and values of replies that are under way, which go on from what they have."""
        await self._llm.finish_weight_update(weight_version)
        await self._forget_prefixes()
        await self._llm.resume_generation()
        self._rest.renewed()
        self._gate.release()

    async def _forget_prefixes(self) -> None:
        self._stale_prefixes = not await self._llm.reset_prefix_cache()

    @ends_with_its_core
    async def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        """Put a LoRA adapter in the place of the former one; as `finish_weight_update`, it holds for all that follows."""
        from vllm.lora.request import LoRARequest

        from rollout.vllm_weights import ADAPTER_ID

        async with self._gate:
            await self._rest.wake_weights()
            if self._calls:
                await self._llm.pause_generation(mode="keep", clear_cache=False)
            await self._llm.collective_rpc("receive_adapter", args=(update,))
            # the workers hold the adapter under its id: the path is asked for by vLLM and never opened
            self._adapter = LoRARequest("policy", ADAPTER_ID, "/published")
            await self._llm.update_weight_version(weight_version)
            await self._forget_prefixes()
            await self._llm.resume_generation()

    @ends_with_its_core
    async def sleep(self) -> None:
        """Leave a shared device to the learner (`rollout.sharing.Rest.sleep`)."""
        async with self._gate:
            assert not self._calls, "sleep would abort the replies under way"
            await self._rest.sleep()

    async def rest_seconds(self) -> dict[str, float]:
        """`rollout.sharing.Rest.seconds`."""
        return self._rest.seconds()

    async def end(self) -> None:
        """End this process and vLLM's own, which may have stopped for ever."""
        for process in psutil.Process().children(recursive=True):
            process.kill()
        os._exit(1)

    async def shutdown(self) -> None:
        self._llm.shutdown()


def _lora_arguments(rank: int, targets: Sequence[str]) -> dict[str, Any]:
    """vLLM's arguments for one adapter of `rank` on `targets`; its kernels know certain ranks, of which the next is taken."""
    if rank == 0:
        return {}
    from vllm.config.lora import MaxLoRARanks

    room = min((size for size in get_args(MaxLoRARanks) if size >= rank), default=None)
    if room is None:
        raise ValueError(
            f"model.lora.rank must be at most {max(get_args(MaxLoRARanks))} with publish.what = adapter, is {rank}; lower it, "
            "or set publish.what = merged"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room, "lora_target_modules": list(targets)}


def _rollout(prompt: Prompt, sample: int, output: RequestOutput, text: str, labels: Mapping[str, str]) -> Rollout:
    completion = output.outputs[0]
    ids = array("i", completion.token_ids)
    assert completion.logprobs is not None
    spans = completion.weight_versions or []
    experts = completion.routed_experts  # [prompt and reply without its last token, layers, experts per token]
    return Rollout(
        prompt=prompt,
        sample=sample,
        response_ids=ids,
        sampled_logprobs=array(
            "d", (entry[token].logprob for entry, token in zip(completion.logprobs, ids, strict=True))
        ),
        versions=tuple(VersionSpan(int(s.version), s.start, s.end) for s in spans),
        text=text.strip(),
        finish=_FINISHES.get(completion.finish_reason or "", Finish.ABORTED),
        labels=labels,
        routing=NO_ROUTING if experts is None else Routing(experts.shape, experts.astype("<u2").tobytes()),
    )
