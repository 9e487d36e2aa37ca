"""Memory of a learner rank: three roles on one frozen base, three models with adapters, and full tuning.

`python -m tests.benchmarks.shared_base` builds a Mixtral large enough that its weights dominate, and lets each arm make two PPO
updates (annotation, policy and critic) in a process of its own: its peak resident set, and how much of that its imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from cluster.device import current_device
from rl.config import LearnerConfig, LoraConfig, ModelConfig
from rl.policy import ActorCritic, Role, Rows, TokenStats
from rl.zero import ZeroEngine

ATTENTION, EXPERTS = LoraConfig(), LoraConfig(target_parameters=("experts.gate_up_proj", "experts.down_proj"))
VOCABULARY = 2000


class ThreeModels(nn.Module):
    """A model of its own for each role, of which only what the role needs is asked and trained."""

    def __init__(self, config: ModelConfig, load: Callable[[], PreTrainedModel]) -> None:
        super().__init__()
        self.models = nn.ModuleDict({role.value: ActorCritic(config, load) for role in Role})

    def forward(self, role: Role, *asked: Any) -> Any:
        """What the role's own model says."""
        return self.models[role.value](role, *asked)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the policy's model and of the critic's, by the role that trains them."""
        return {role: self.models[role].trainable()[role] for role in ("policy", "critic")}


@dataclass(frozen=True)
class Arm:
    """What a process holds."""

    module: type[ActorCritic | ThreeModels]
    model: ModelConfig


def lora(adapters: LoraConfig, checkpointing: bool = False) -> ModelConfig:
    return ModelConfig(tuning="lora", lora=adapters, gradient_checkpointing=checkpointing, dtype="float32")


ARMS = {
    "one base, adapters on attention": Arm(ActorCritic, lora(ATTENTION)),
    "three models, adapters on attention": Arm(ThreeModels, lora(ATTENTION)),
    "one base, and experts, checkpointing": Arm(ActorCritic, lora(EXPERTS, checkpointing=True)),
    "three models, and experts, checkpointing": Arm(ThreeModels, lora(EXPERTS, checkpointing=True)),
    "one base, and experts": Arm(ActorCritic, lora(EXPERTS)),
    "full: policy, critic, frozen reference": Arm(ActorCritic, ModelConfig(tuning="full", dtype="float32")),
}


def main() -> None:
    """Every arm, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    asked = parser.parse_args()
    if asked.arm:
        print(json.dumps(measure(ARMS[asked.arm], asked.model, asked.rows, asked.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = save(Path(folder), asked.hidden, asked.layers)
        print(f"Mixtral of {parameters / 1e6:.0f} M parameters, float32: {4 * parameters / 2**20:.0f} MiB; "
              f"{asked.rows} rows of {asked.tokens} tokens")  # fmt: skip
        first: dict[str, float] = {}
        print(f"{'arm':42} {'peak MiB':>9} {'imports':>8} {'x first':>8} {'x without imports':>18} {'trained':>9}")
        for arm in ARMS:
            words = ["--arm", arm, "--model", folder, "--rows", str(asked.rows), "--tokens", str(asked.tokens)]
            command = [sys.executable, "-m", "tests.benchmarks.shared_base", *words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            peak, imports = found["peak"], found["imports"]
            first = first or found
            own = (peak - imports) / (first["peak"] - first["imports"])
            print(f"{arm:42} {peak / 2**20:9.0f} {imports / 2**20:8.0f} {peak / first['peak']:8.2f} {own:18.2f} "
                  f"{found['trained'] / 1e6:7.2f} M", flush=True)  # fmt: skip


def save(folder: Path, hidden: int, layers: int) -> int:
    """An untrained Mixtral in `folder`; its number of parameters."""
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, head_dim=64,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, num_local_experts=4, sliding_window=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


def peak_resident() -> int:
    """Largest resident set of this process, bytes. (`getrusage` begins with that of the process which started this one.)"""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure(arm: Arm, folder: Path, rows: int, tokens: int) -> dict[str, float]:
    """Bytes of this process: at its peak, and before it loaded anything."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29431")
    torch.set_num_threads(1)
    device = current_device()
    imports = peak_resident()
    model = ModelConfig(**{**vars(arm.model), "path": str(folder)})
    zero = ZeroEngine(
        lambda load: arm.module(model, load),
        lambda module: module.trainable(),
        model=model,
        config=LearnerConfig(ranks=1, zero_stage=0, micro_batch=rows),
        device=device,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    tokens_BS = torch.randint(0, VOCABULARY, (rows, tokens))
    positions_BS, mask_BT = torch.arange(tokens).repeat(rows, 1), torch.ones(rows, tokens - 1, dtype=torch.bool)
    asked = Rows(tokens_BS, positions_BS, None, torch.ones_like(tokens_BS), mask_BT)
    rates = {"policy": 1e-4, "critic": 1e-4}
    for _ in range(2):
        with torch.no_grad():
            for role in Role:
                zero(role, asked, 1.0)
        zero.backward(-TokenStats(*zero(Role.POLICY, asked, 1.0)).logprobs_RV.mean(), rates, last=False)
        zero.backward((zero(Role.CRITIC, asked, 1.0) - 1).square().mean(), rates, last=True)
    trained = sum(p.numel() for held in zero.engine.module.trainable().values() for p in held)
    return {"peak": float(peak_resident()), "imports": float(imports), "trained": float(trained)}


if __name__ == "__main__":
    main()
