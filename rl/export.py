"""The trained policy as a folder that transformers and vLLM load: sharded safetensors under the checkpoint's names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from rollout.weight_stream import WeightStream

SHARD_BYTES = 5_000_000_000


def export_policy(
    stream: WeightStream, config: PretrainedConfig, folder: Path, *, write: bool, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `stream` and `config` to `folder`, at most `shard_bytes` in memory at once. A collective; one rank writes."""
    if not write:
        for _ in stream:
            pass
        return
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    held = 0
    tied = bool(config.tie_word_embeddings)
    for group in stream:
        for name, tensor in group.tensors:
            if tied and name == "lm_head.weight":
                continue  # loaded from the embedding
            size = tensor.numel() * tensor.element_size()
            if shard and held + size > shard_bytes:
                _flush(shard, folder, index)
                shard, held = {}, 0
            shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
            held += size
    _flush(shard, folder, index)
    total = sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in stream.specs())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    )
    config.save_pretrained(folder)


def _flush(shard: dict[str, Tensor], folder: Path, index: dict[str, str]) -> None:
    name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    index.update(dict.fromkeys(shard, name))
