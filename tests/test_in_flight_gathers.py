"""Real DeepSpeed, ZeRO-3, with its limits scaled to tiny layers as the defaults are to large ones: what is streamed is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import torch, torch.distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

torch.set_num_threads(1)
torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())  # collectives that return at once
from cluster.device import current_device
from rl import zero
from rl.config import LearnerConfig, LoraConfig, ModelConfig
from rl.policy import ActorCritic, Role, Rows

shape, tuning, real_layer = sys.argv[1], sys.argv[2], float(sys.argv[3])
sizes = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=16, num_attention_heads=2, num_key_value_heads=1, vocab_size=64
)

def load(*_):
    from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM
    config, kind = {"mistral": (MistralConfig(**sizes), MistralForCausalLM),
                    "mixtral": (MixtralConfig(num_local_experts=4, **sizes), MixtralForCausalLM)}[shape]
    return kind._from_config(config, attn_implementation="sdpa")

settings_of = zero._deepspeed_settings

def scaled(*args):
    settings = settings_of(*args)
    part = layer / real_layer
    settings["zero_optimization"] |= {
        "stage3_prefetch_bucket_size": int(5e7 * part), "stage3_max_live_parameters": int(3e9 * part),
        "stage3_max_reuse_distance": int(1e9 * part), "stage3_param_persistence_threshold": 1,
    }
    return settings

layer = sum(p.numel() for name, p in load().named_parameters() if ".layers.0." in name)
zero._deepspeed_settings, zero.load_model, zero.HfDeepSpeedConfig = scaled, load, lambda settings: None
model = ModelConfig(tuning=tuning, dtype="float32", lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
engine = zero.ZeroEngine(
    lambda load: ActorCritic(model, load, has_critic=False), lambda module: module.trainable(), model=model,
    config=LearnerConfig(ranks=2, zero_stage=3), device=current_device(),
    betas=(0.9, 0.95), weight_decay=0.0, max_grad_norm=1.0,
)
tokens = torch.randint(1, 60, (2, 12))
rows = Rows(tokens, torch.arange(12).repeat(2, 1), None, torch.ones_like(tokens), torch.ones(2, 11, dtype=torch.bool))
stream = zero.PolicyStream(engine.engine.module.policy, only_trained=False)
whole = {spec.name: spec.shape for spec in stream.specs()}
lrs, found = {name: 1e-4 for name in engine.engine.module.trainable()}, []
for _ in range(2):
    for _ in range(2):
        engine.backward(engine(Role.POLICY, rows, 1.0)[0].sum(), lrs, last=True)
    for _ in range(2):
        with torch.no_grad():
            engine(Role.POLICY, rows, 1.0)
        found.append([name for group in stream for name, tensor in group.tensors if tuple(tensor.shape) != whole[name]])
print("FOUND", json.dumps([found, len(whole)]))
"""


@pytest.mark.parametrize(("shape", "tuning", "real_layer"), [("mistral", "full", 2.18e8), ("mixtral", "lora", 1.45e9)])
def test_what_follows_a_forward_pass_finds_every_parameter_whole(shape: str, tuning: str, real_layer: float) -> None:
    """Without a critic DeepSpeed knows the order of a whole update by heart; behind a forward pass alone it begins to gather for a
    backward pass that does not come. A checkpoint or a publish right then must not take such parameters, without elements, for
    whole ones."""
    own = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, shape, tuning, str(real_layer)],
        cwd=Path(__file__).parents[1], env={**os.environ, **own}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    found, tensors = json.loads(answer.stdout.rpartition("FOUND ")[2])
    assert found == [[]] * 4 and tensors > 100
