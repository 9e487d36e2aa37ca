"""One learner's memory, predicted and measured: `python -m tests.memory_case CASE` (JSON), in a process of its own.

Measured is the peak of live tensor bytes over a whole step's annotate and update (PPO), or an update (supervised), after one
that made the optimizer's states; predicted is the largest phase of `rl.memory_model` without what it assumes for CUDA.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A model's shape, what trains of it, and how. `prompt` + `reply` tokens a row, `rows` of them in a micro-batch."""

    shape: Literal["mistral", "mixtral", "gpt2"]
    tuning: Literal["full", "lora"]
    hidden: int = 128
    layers: int = 4
    vocabulary: int = 1000
    feed_forward: int = 512
    experts: int = 4
    rows: int = 4
    prompt: int = 224
    reply: int = 32
    checkpointing: bool = False
    stacks: tuple[str, ...] = ()  # of experts, with adapters
    packed: int = 0  # replies to a prompt, which share it in rows that hold all of a micro-batch's `rows` replies
    entropy: float = 0.0  # its coefficient in the loss
    zero_stage: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    job: Literal["ppo", "sft"] = "ppo"

    @property
    def tokens(self) -> int:
        """Of a packed micro-batch: `rows` replies, and each prompt's tokens once; 0 where a row is one reply."""
        if not self.packed:
            return 0
        return self.rows // self.packed * (self.prompt - 1 + self.packed * (self.reply + 1))

    def __str__(self) -> str:
        size = f"{self.layers}x{self.hidden}/{self.feed_forward}, {self.rows}x{self.prompt}+{self.reply}"
        extra = [*(["checkpointing"] if self.checkpointing else []), *(["packed"] if self.packed else []), *self.stacks]
        extra += ["entropy"] if self.entropy else []
        ways = ", ".join((self.dtype, f"ZeRO {self.zero_stage}", *extra))
        return f"{self.job} {self.shape} {self.tuning}, {size}, {ways}"


@dataclass(frozen=True)
class Measured:
    """Bytes: predicted and measured peaks, of which `rest` lived before the step; `resident_growth` of the process's peak
    resident set meanwhile (the first step's peak, and the profiler's own records, are in it); the phase that was predicted."""

    predicted: float
    peak: float
    rest: float
    resident_growth: float
    phase: str

    @property
    def error(self) -> float:
        return self.predicted / self.peak - 1


def measure(case: Case) -> Measured:
    """Run `case` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "tests.memory_case", json.dumps(asdict(case))],
        cwd=ROOT, env={**os.environ, **rendezvous, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"{case} failed: {answer.stderr[-2000:]}")
    return Measured(**json.loads(answer.stdout.splitlines()[-1]))


def save_model(case: Case, folder: Path) -> None:
    """An untrained model of the case's shape."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        MistralForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    sizes: dict[str, Any] = {
        "vocab_size": case.vocabulary, "hidden_size": case.hidden, "intermediate_size": case.feed_forward,
        "num_hidden_layers": case.layers, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    match case.shape:
        case "mistral":
            model: Any = MistralForCausalLM(MistralConfig(**sizes))
        case "mixtral":
            model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=case.experts, num_experts_per_tok=2))
        case "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=case.vocabulary, n_embd=case.hidden, n_layer=case.layers, n_head=4, n_inner=case.feed_forward,
                    n_positions=4096, bos_token_id=None, eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                )
            )  # fmt: skip
    model.save_pretrained(folder)


def recipe_of(case: Case, model: Path):  # type: ignore[no-untyped-def]
    """The shipped local recipe with the case's settings: two micro-batches, one update."""
    from cluster.settings import load
    from rl.recipe_files import find, recipe_type

    rows, width = 2 * case.rows, case.prompt + case.reply
    sample: dict[str, Any] = {
        "model.path": str(model), "model.dtype": case.dtype, "model.tuning": case.tuning,
        "model.gradient_checkpointing": case.checkpointing,
        "model.lora.target_parameters": list(case.stacks),
        "model.lora.targets": ["c_attn"] if case.shape == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj"],
        "learner.ranks": 1, "learner.zero_stage": case.zero_stage, "learner.micro_batch": case.rows,
    }  # fmt: skip
    if case.job == "sft":
        sample |= {"sft.batch": rows, "data.max_tokens": width, "sft.sample_tokens": 8}
        return load(recipe_type("sft"), find("sft_local"), sample=sample)
    sample |= {
        "prompts.per_step": rows // (case.packed or 1), "sampling.n": case.packed or 1, "prompts.fixed_share": 0.0,
        "learner.micro_batch_tokens": case.tokens, "sampling.max_tokens": case.reply, "prompts.max_context_tokens": case.prompt,
        "rollout.max_model_len": width + 1, "ppo.epochs": 1, "ppo.minibatches": 1,
        "ppo.entropy_coef": case.entropy,
    }  # fmt: skip
    return load(recipe_type("ppo"), find("local"), sample=sample)


def run(case: Case, folder: Path) -> Measured:
    """Predict, build, step once, then measure a step. Alone in its process."""
    import torch

    from rl.memory_model import CPU_OVERHEADS, counts_of, learner_phases
    from rl.model_shape import find_shape
    from tests.live_bytes import peak_of

    model = folder / "model"
    save_model(case, model)
    recipe = recipe_of(case, model)
    shape, _ = find_shape(recipe.model.path, recipe.model.tiny)
    phases = learner_phases(recipe, shape, counts_of(recipe, shape), CPU_OVERHEADS)
    totals = {name: sum(phases[name].values()) for name in ("gradients", "reduce", "apply")}
    phase = max(totals, key=lambda name: totals[name])
    step = supervised_step(case, recipe, folder) if case.job == "sft" else ppo_step(case, recipe)
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = peak_of(step)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    torch.distributed.destroy_process_group()
    return Measured(totals[phase], found.total, found.before, grown, phase)


def ppo_step(case: Case, recipe):  # type: ignore[no-untyped-def]
    """Annotate and update with rows as long as they may be."""
    import torch

    from rl.batch import Batch
    from rl.learner import PpoLearner

    learner = PpoLearner(recipe)
    generator, rows, width = torch.Generator().manual_seed(0), 2 * case.rows, case.prompt + case.reply
    mask_BT = torch.zeros(rows, width - 1, dtype=torch.bool)
    mask_BT[:, case.prompt - 1 :] = True
    tokens_BS, n = torch.randint(5, case.vocabulary, (rows, width), generator=generator), case.packed or 1
    tokens_BS[:, : case.prompt] = tokens_BS[::n, : case.prompt].repeat_interleave(n, dim=0)
    batch = Batch(
        tokens_BS=tokens_BS,
        lengths_B=torch.full((rows,), width),
        prompt_lengths_B=torch.full((rows,), case.prompt),
        mask_BT=mask_BT,
        sampled_logprobs_BT=torch.where(mask_BT, -1.0, 0.0),
        versions_BT=torch.zeros(rows, width - 1, dtype=torch.int64),
        score_B=torch.rand(rows, generator=generator),
        unfinished_B=torch.zeros(rows, dtype=torch.bool),
        group_B=torch.arange(rows),
        experts_BSLk=torch.zeros(rows, width, 0, 0, dtype=torch.int16),
    )
    return lambda: learner.update(learner.annotate(batch))


def supervised_step(case: Case, recipe, folder: Path):  # type: ignore[no-untyped-def]
    """Update on sequences that fill their rows, every token trained."""
    import torch

    from rl.sft_learner import SftLearner
    from rollout.chat import Chat, Example
    from rollout.config import CorpusConfig
    from rollout.corpora import load as load_corpus
    from rollout.tokenizer import train_tokenizer

    Chat(train_tokenizer(load_corpus(CorpusConfig()).train, 600)).tokenizer.save_pretrained(folder / "tokenizer")
    learner = SftLearner(recipe, folder / "tokenizer", {}, 10)
    generator, width = torch.Generator().manual_seed(0), case.prompt + case.reply
    ids = torch.randint(5, case.vocabulary, (2 * case.rows, width), generator=generator).tolist()
    batch = [Example(tuple(row), (True,) * width) for row in ids]
    return lambda: learner.update(batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print("\n" + json.dumps(asdict(run(Case(**json.loads(sys.argv[1])), Path(scratch)))))
