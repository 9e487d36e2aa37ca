"""Weight transport inside vLLM: the shared-memory backend of its workers, and vLLM's own trainer engines for CUDA.

Imported in vLLM's worker processes through `worker_extension_cls`, which registers the backend before the worker builds
its transfer engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from cluster.pool import ReplicaSilent
from rollout.weight_stream import (
    CHUNK_BYTES,
    EngineSyncClient,
    SharedMemoryUpdate,
    WeightGroup,
    WeightStream,
    read_shared_memory,
)

SHARED_MEMORY = "shared_memory"
ADAPTER_ID = 1  # the one adapter of an engine


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says where it lies."""


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, Any]):
    """Receives checkpoint-named weights through shared memory and loads them layer by layer."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        if self.device.type == "cpu":
            repack_experts_on_reload(self.model)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self.model.load_weights(read_shared_memory(update_info))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """No connection is held between updates."""


def repack_experts_on_reload(model: torch.nn.Module) -> None:
    """Make each MoE layer that receives weights pack its experts anew (CPU only).

    vLLM's CPU kernel packs experts when it is first built, and on a reload copies the unpacked weights over them: wrong
    logits without an error. Dropping the kernel makes it build, and pack, again. vLLM calls this hook only for layers
    that received weights; a layer that received nothing must keep its kernel.
    """

    def process(method: UnquantizedFusedMoEMethod, layer: Any) -> None:
        method.moe_kernel = None
        type(method).process_weights_after_loading(method, layer)

    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.process_weights_after_loading = MethodType(process, method)  # type: ignore[method-assign]


if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryEngine)


class WorkerExtension:
    """Part of vLLM's worker. Naming it makes the workers import this module, and so know the backend."""

    model_runner: Any

    def receive_adapter(self, update: dict[str, Any]) -> None:
        """Put the LoRA adapter of an `AdapterUpdate` in the place of the former one, in vLLM's own LoRA slots.

        Raises ValueError when a tensor belongs to no module that takes adapters here: vLLM would leave it out in silence.
        """
        manager = self.model_runner.lora_manager
        held: LoRAModelManager = manager._adapter_manager
        mapper = getattr(held.model, "hf_to_vllm_mapper", None)  # vLLM's models have one or none
        adapter = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            # a copy: vLLM keeps what it is given, and the next publish reuses the memory
            {name: tensor.clone() for name, tensor in read_shared_memory(SharedMemoryUpdate(**update["tensors"]))},
            PEFTHelper(r=update["rank"], lora_alpha=update["alpha"], target_modules=[]),
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=mapper.get_rename_mapper() if mapper is not None else None,
        )
        held.remove_adapter(ADAPTER_ID)
        held.add_adapter(adapter)
        if strays := sorted(set(adapter.loras) - set(held.modules)):
            raise ValueError(
                f"publish.what = adapter must name modules that vLLM adapts, names {', '.join(strays[:4])}; "
                "set publish.what = merged, or other model.lora.targets"
            )
        held.activate_adapter(ADAPTER_ID)


class StreamSource(WeightSource):
    """Our stream as vLLM's `WeightSource`, for its NCCL and IPC trainer engines."""

    def __init__(self, stream: WeightStream) -> None:
        self._stream = stream
        self._groups: Iterator[WeightGroup] = iter(())  # what is left of this publish's pass

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(spec.name, spec.dtype, spec.shape) for spec in self._stream.specs()]

    def begin(self) -> None:
        """A pass is to be made, and nothing of it is yet."""
        self._groups = iter(self._stream)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """One pass. vLLM packs on two CUDA streams in turn, and a group may be made on one and read on the other: what is
        yielded is finished, and what is dropped has been read."""
        self.begin()
        for group in self._groups:
            _finish_device_work()
            yield from group.tensors
            _finish_device_work()

    def drain(self) -> None:
        """Make what is left of the pass: the other ranks gather until its end."""
        for _ in self._groups:
            pass


def _finish_device_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cuda_trainer(
    backend: str, stream: WeightStream, client: EngineSyncClient, *, rank: int
) -> TrainerWeightTransferEngine[Any]:
    """vLLM's trainer engine for CUDA learners: `nccl` (packed, between devices or nodes) or `ipc` (one device, colocated).

    Called on every rank; rank 0 opens the endpoint and drives the engines. Where an engine fails, see `cuda_publish`.
    """
    info: TrainerInitInfo
    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        info = NCCLTrainerInitInfo(
            rank=rank, master_address=get_ip(), master_port=get_open_port(), world_size=client.workers + 1, packed=True
        )
    elif backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        # one buffer of at least 1 GiB, which every tensor must fit in
        largest = max((spec.bytes for spec in stream.specs()), default=0)
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(largest, CHUNK_BYTES))
    else:
        raise ValueError(f"rollout.weight_transfer must be nccl or ipc on CUDA, is {backend!r}")
    source = StreamSource(stream)
    source.begin()
    with _others_go_on(backend, source):
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def cuda_publish(
    backend: str, trainer: TrainerWeightTransferEngine[Any], client: EngineSyncClient, version: int
) -> None:
    """Send every weight as policy `version`. Called on every rank.

    Where an engine fails, rank 0 still makes the rest of its pass over the stream, since the other ranks do; then it raises. By
    IPC ranks also meet in vLLM's own collectives, which nobody can make for it: there the failure is fatal (RuntimeError), and
    silence (ReplicaSilent) is told as such.
    """
    trainer.client = client.at(version)
    source = trainer.source
    assert isinstance(source, StreamSource)
    source.begin()
    with _others_go_on(backend, source):
        trainer.send_weights()


@contextmanager
def _others_go_on(backend: str, source: StreamSource) -> Iterator[None]:
    """What a failure on rank 0 leaves to be done for the other ranks, which know nothing of it."""
    try:
        yield
    except ReplicaSilent:  # whoever hangs is ended, and with it the ranks that wait
        raise
    except Exception as error:
        if backend == "ipc":
            raise RuntimeError(
                f"an engine failed while it read the learner's memory ({error}); the same command resumes from the last "
                "checkpoint"
            ) from error
        source.drain()
        raise
