"""TRL's GRPO trainer as a process that makes one step for every line that it is sent; `tests.benchmarks.peer` drives it.

Runs where `trl` is installed: `python -m tests.benchmarks.peer_trl SETTINGS.json`. It answers on standard output, one JSON
object a line, and computes nothing while nobody asks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.words import words


@dataclass(frozen=True)
class PeerSettings:
    """What both sides share, and how the peer is run."""

    model: str  # a folder; policy and reference are read from it
    prompts: Sequence[Sequence[int]]  # token ids, `prompts_per_step` of them a step
    prompts_per_step: int
    n: int  # replies to a prompt: the group
    max_tokens: int
    end_ids: Sequence[int]  # none: every reply has `max_tokens` tokens
    low: int  # of the reward, in words
    high: int
    band: int
    kl_coef: float
    lr: float
    steps: int
    threads: int
    micro_batch: int  # replies that go through the model at once when it trains; replies of a step divide by it
    experts: str  # transformers' way to run experts: "eager", "batched_mm" or "grouped_mm"
    continuous: bool  # transformers' continuous batching instead of `generate`
    folder: str


def length_reward(reply: str, low: int, high: int, band: int) -> float:
    """1 from `low` to `high` words, falling to 0 within `band` words on either side: the rule of `rewards.length`."""
    count = len(words(reply))
    return max(0.0, 1.0 - max(low - count, count - high, 0) / band) if count else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Build the trainer, say so, and make the steps that are asked for."""
    settings = PeerSettings(**json.loads(Path((argv or sys.argv[1:])[0]).read_text()))
    import torch

    torch.set_num_threads(settings.threads)
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Trainer(GRPOTrainer):
        """Prompts are token ids, as on the other side; the seconds of generation are kept."""

        generation_s = 0.0
        lengths: Sequence[int] = ()

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(settings.prompts[int(prompt)]) for prompt in prompts], None, {}

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            answer = super()._generate_single_turn(*args, **kwargs)
            self.generation_s = time.perf_counter() - started
            self.lengths = [len(ids) for ids in answer[0]]
            return answer

    class Turns(TrainerCallback):
        """Stands still before every step until it is asked for, and reports the one before."""

        started: float | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._report()
            if not sys.stdin.readline():
                raise SystemExit
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self._report()

        def _report(self) -> None:
            if self.started is None:
                say(ready=True, threads=torch.get_num_threads())
                return
            seconds = time.perf_counter() - self.started
            tokens = trainer.lengths
            say(seconds=seconds, rollout_s=trainer.generation_s, tokens=sum(tokens), longest=max(tokens))

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [length_reward(text, settings.low, settings.high, settings.band) for text in completions]

    replies = settings.prompts_per_step * settings.n
    tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
    trainer = Trainer(
        model=settings.model,
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [str(index) for index in range(len(settings.prompts))]}),
        callbacks=[Turns()],
        args=GRPOConfig(
            output_dir=settings.folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32", "experts_implementation": settings.experts},
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=replies // settings.micro_batch,
            steps_per_generation=replies // settings.micro_batch,
            num_generations=settings.n,
            num_iterations=1,
            max_completion_length=settings.max_tokens,
            shuffle_dataset=False,
            temperature=1.0,
            beta=settings.kl_coef,
            loss_type="grpo",
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=settings.steps,
            use_transformers_continuous_batching=settings.continuous,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    ends = list(settings.end_ids) or [-1]  # no token is -1: nothing ends a reply, and no logit need be suppressed
    trainer.eos_token_ids = ends
    if trainer.generation_config is not None:
        trainer.generation_config.eos_token_id = ends
        trainer.generation_kwargs["eos_token_id"] = ends
    trainer.train()


def say(**answer: Any) -> None:
    """One line of JSON to the driver."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
