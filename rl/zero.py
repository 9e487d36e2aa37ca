"""DeepSpeed ZeRO: the only module that imports it. Build, step, gather layer by layer, save, load."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from transformers.pytorch_utils import Conv1D

from cluster.device import Device
from rl.config import REDUCE_BUCKET, LearnerConfig, PretrainedConfig
from rl.policy import Role
from rollout.weight_stream import Progress, TensorSpec, WeightGroup

_LAYER = re.compile(r"^(.*?\.(?:layers|h)\.\d+)\.([^.]+)\.")
_ADAPTER = re.compile(r"\.(?:lora_[AB]|ia3_l)\.")
_POLICY_LORA = re.compile(rf"\.(lora_[AB])\.{Role.POLICY.value}\.weight$")


class ZeroEngine:
    """A module under ZeRO. One optimizer, with the parameter groups that `groups` names.

    Gradients of `backward` add up until the call that says it is the last, which updates. Losses are shares of a sum over the
    global minibatch (see `rl.losses`): DeepSpeed averages over ranks, so they are scaled by the world size.
    """

    def __init__(
        self,
        build: Callable[[Callable[[], PreTrainedModel]], nn.Module],
        groups: Callable[[Any], Mapping[str, Sequence[nn.Parameter]]],
        *,
        model: PretrainedConfig,
        config: LearnerConfig,
        device: Device,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        # its shared-memory all-reduce for CPUs is compiled at first use: half a minute, and no run without a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = device.torch
        settings = _deepspeed_settings(model, config, max_grad_norm)
        # while this object lives, transformers loads models straight into ZeRO-3 shards
        sharded_loading = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
        module = build(lambda: load_model(model, None if sharded_loading else device))
        parameters = [{"params": list(p), "name": name} for name, p in groups(module).items()]
        adamw = torch.optim.AdamW(
            parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=device.kind == "cuda" or None
        )
        self._stage = config.zero_stage
        self._trained = [parameter for held in groups(module).values() for parameter in held]
        if self._stage:  # a bucket takes its whole size at once: for adapters of a few MB it would be 1 GB and more
            settings["zero_optimization"]["reduce_bucket_size"] = min(
                REDUCE_BUCKET, sum(math.prod(_full_shape(parameter)) for parameter in self._trained)
            )
        self._grad_norm: Tensor | float = 0.0
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=module, optimizer=adamw, config=settings)  # type: ignore[arg-type]

    def __call__(self, *args: Any) -> Any:
        answer = self.engine(*args)
        if self._stage == 3 and not torch.is_grad_enabled():
            # behind a forward pass DeepSpeed may have begun to gather for a backward pass that does not come: such parameters
            # have no elements yet, and whoever streams or saves them next would take them for whole
            self.optimizer.parameter_offload.get_param_coordinator()._clean_inflight_param_registry()
        return answer

    def backward(self, loss: Tensor, lrs: Mapping[str, float], *, last: bool) -> None:
        """Add the gradients of a share of the global loss; after the `last` share update, at rates `lrs`."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        if last:
            for group, name in zip(self.optimizer.param_groups, lrs, strict=True):
                group["lr"] = lrs[name]
            if self._stage == 0:
                self._grad_norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        self.engine.step()
        if last and self._stage == 3:
            # ZeRO-3 overwrites a gradient buffer at the first micro-step only and adds at later ones: a parameter that the
            # first micro-step does not use (the critic's: the policy comes first) would keep its old sum for ever
            self.optimizer.grad_partitions_flat_buffer.zero_()

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        return float(self._grad_norm if self._stage == 0 else self.engine.get_global_grad_norm())

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it every rank holds `parameters` whole, to read. A collective."""
        return _gathered(parameters)

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """Sum, or maximum, over ranks; returns a new tensor."""
        total = x.detach().clone()
        torch.distributed.all_reduce(total, getattr(torch.distributed.ReduceOp, op.upper()))
        return total

    def save(self, folder: Path) -> None:
        """Write this rank's weights and optimizer states under `folder`. A collective."""
        self.engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with the same world size. A collective."""
        self.engine.load_checkpoint(str(folder), tag="state", load_module_strict=False, load_lr_scheduler_states=False)


class PolicyStream:
    """The policy's weights under the checkpoint's names, decoder layer by decoder layer (a `WeightStream`).

    One coalesced gather per layer, on all ranks in the same order; every rank yields the tensors. LoRA adapters are merged
    into what they adapt. With `only_trained`, groups that no optimizer touches are left out; a group is a child of a layer
    (its attention, its experts), so that what vLLM fuses (q, k, v) always comes complete.
    """

    def __init__(self, policy: PreTrainedModel, *, only_trained: bool, progress: Progress | None = None) -> None:
        self._policy = policy
        self._progress = progress or Progress()
        self._specs: list[TensorSpec] = []
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in policy.named_parameters(remove_duplicate=True):
            groups.setdefault(_group_of(name), {})[name] = parameter
        if only_trained:
            groups = {key: held for key, held in groups.items() if any(p.requires_grad for p in held.values())}
        self._layers: dict[str, list[str]] = {}
        for key in groups:
            self._layers.setdefault(key.rpartition("/")[0] or key, []).append(key)
        self._groups = groups
        self._adapted = {name: m for name, m in policy.named_modules() if isinstance(m, BaseTunerLayer)}
        self._ties_head = bool(policy.config.tie_word_embeddings)

    def specs(self) -> list[TensorSpec]:
        if not self._specs:  # names are reverted once, not at every publish
            self._specs = self._described()
        return self._specs

    def _described(self) -> list[TensorSpec]:
        shapes = {
            key: {name: torch.empty(_full_shape(p), dtype=p.dtype, device="meta") for name, p in held.items()}
            for key, held in self._groups.items()
        }
        return [
            TensorSpec(name, tensor.dtype, tuple(tensor.shape))
            for keys in self._layers.values()
            for key in keys
            for name, tensor in self._published(shapes[key])
        ]

    def __iter__(self) -> Iterator[WeightGroup]:
        for layer, keys in self._layers.items():
            held = [parameter for key in keys for parameter in self._groups[key].values()]
            self._progress.doing = f"gathering {layer}"
            with torch.no_grad(), _gathered(held):
                for key in keys:
                    self._progress.doing = f"sending {key.replace('/', '.')}"
                    tensors = {name: parameter.detach() for name, parameter in self._groups[key].items()}
                    yield WeightGroup(key.replace("/", "."), tuple(self._published(tensors)))

    def _published(self, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        merged: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if _ADAPTER.search(name):
                continue
            module, _, leaf = name.rpartition(".")
            while module.endswith(".base_layer"):  # twice where two stacks of the same experts are adapted
                module = module.removesuffix(".base_layer")
                tensor = _merge(tensor, leaf, self._adapted[module], tensors, module)
            merged[f"{module}.{leaf}"] = tensor
        published = list(revert_weight_conversion(self._policy, merged).items())
        if self._ties_head:  # on CPU vLLM packs a tied head by itself and would keep the old one
            head = self._policy.get_input_embeddings().weight
            published += [("lm_head.weight", t) for n, t in tensors.items() if self._groups[_group_of(n)][n] is head]
        return published


class AdapterStream(PolicyStream):
    """The policy's LoRA adapter alone: A and B of every adapted module under PEFT's names, layer by layer.

    A is [rank, in] and B [out, rank] whichever way round the adapted layer keeps its own weight.
    """

    def __init__(self, policy: PreTrainedModel, *, progress: Progress | None = None) -> None:
        super().__init__(policy, only_trained=True, progress=progress)
        self._groups = {
            key: {name: p for name, p in held.items() if _POLICY_LORA.search(name)}
            for key, held in self._groups.items()
        }

    def _published(self, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [(_POLICY_LORA.sub(r".\1.weight", name), tensor) for name, tensor in tensors.items()]


def _merge(tensor: Tensor, leaf: str, layer: BaseTunerLayer, tensors: Mapping[str, Tensor], module: str) -> Tensor:
    """The `leaf` of an adapted layer with the policy's adapter in it, where it adapts this leaf (a weight, a bias, a stack of
    experts): what PEFT's own merge would give."""
    role = Role.POLICY.value
    transposed = isinstance(layer.get_base_layer(), Conv1D)
    if isinstance(layer, IA3Layer):
        scale = tensors[f"{module}.ia3_l.{role}"].float()  # [O, 1], or [1, I] where inputs are scaled
        if leaf == "bias":
            return tensor if layer.is_feedforward else (tensor.float() * scale.flatten()).to(tensor.dtype)
        return (tensor.float() * (scale.T if transposed else scale)).to(tensor.dtype)
    assert isinstance(layer, LoraLayer)
    if leaf != (layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"):
        return tensor
    a_RI, b_OR = tensors[f"{module}.lora_A.{role}.weight"], tensors[f"{module}.lora_B.{role}.weight"]
    if isinstance(layer, ParamWrapper):  # the experts' ranks: blocks of A's rows, but interleaved in B's columns
        experts = layer.num_experts
        a_ERI, b_EOR = a_RI.unflatten(0, (experts, -1)), b_OR.unflatten(1, (-1, experts)).permute(2, 0, 1)
        pairs = zip(tensor, b_EOR, a_ERI, strict=True)  # one by one: a stack in float32 is several gigabytes
        return torch.stack([(w + (b.float() @ a.float()) * layer.scaling[role]).to(w.dtype) for w, b, a in pairs])
    delta_OI = (b_OR.float() @ a_RI.float()) * layer.scaling[role]
    return (tensor.float() + (delta_OI.T if transposed else delta_OI)).to(tensor.dtype)


def _group_of(name: str) -> str:
    match = _LAYER.match(name)
    return f"{match[1]}/{match[2]}" if match else re.split(rf"\.base_layer\.|{_ADAPTER.pattern}", name)[0]


def _gathered(parameters: Sequence[nn.Parameter], modifier_rank: int | None = None) -> AbstractContextManager[None]:
    assert all(getattr(p, "ds_status", None) != ZeroParamStatus.INFLIGHT for p in parameters)
    sharded = [p for p in parameters if hasattr(p, "ds_status") and p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=modifier_rank, enabled=bool(sharded))


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def add_label_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Mapping[int, str]) -> None:
    """Give `model` a row for each token of `tokenizer`; a new token begins as the mean of its label's `words` (by id).

    Where the embedding is frozen, labels differ by what their words mean, instead of by noise.
    """
    if len(tokenizer) > _full_shape(model.get_input_embeddings().weight)[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad(), _gathered([layer.weight], modifier_rank=0):
            for token, text in words.items():
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                layer.weight[token] = layer.weight[ids].mean(0)


def load_model(config: PretrainedConfig, device: Device | None) -> PreTrainedModel:
    """The pretrained causal LM of `config`, on `device` (None: DeepSpeed places its shards)."""
    model = AutoModelForCausalLM.from_pretrained(
        config.path, revision=config.revision or None, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
    )
    return model if device is None else model.to(device.name)


def _deepspeed_settings(model: PretrainedConfig, config: LearnerConfig, max_grad_norm: float) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero |= {
            "stage3_max_live_parameters": config.max_live_parameters,
            "stage3_prefetch_bucket_size": 5e7,
            "stage3_param_persistence_threshold": 1e4,
        }
    # in bfloat16 a sum of some hundred micro-batches would stand still: each share is below its last bit. Stage 1 would take
    # another optimizer of DeepSpeed's for it
    types = {"data_types": {"grad_accum_dtype": "fp32"}} if config.zero_stage >= 2 else {}
    return {
        **types,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
