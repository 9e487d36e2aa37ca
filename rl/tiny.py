"""A small model from nothing: tokenizer trained on the corpus, weights warmed up on it by supervised steps.

Local runs, tests and the demonstration start from it; `attune sft` makes real starting points.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rl.config import TinyConfig
from rollout.chat import Chat, Example, merged
from rollout.corpora import Corpus
from rollout.tokenizer import train_tokenizer
from rollout.types import Dialogue, Speaker


def build(config: TinyConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained model of `config.shape`, in float32."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    llama_like = shared | {
        "hidden_size": config.hidden,
        "intermediate_size": 2 * config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": max(config.heads // 2, 1),
        "head_dim": config.hidden // config.heads,
        "max_position_embeddings": config.context,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    match config.shape:
        case "mixtral":
            return MixtralForCausalLM(
                MixtralConfig(
                    **llama_like, num_local_experts=config.experts, num_experts_per_tok=config.experts_per_token
                )
            )
        case "mistral":
            return MistralForCausalLM(MistralConfig(**llama_like))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    **shared,
                    n_embd=config.hidden,
                    n_layer=config.layers,
                    n_head=config.heads,
                    n_positions=config.context,
                    resid_pdrop=0.0,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                )
            )


def make_tiny_model(
    config: TinyConfig, corpus: Corpus, folder: Path, *, seed: int, threads: int, say: Callable[[str], object]
) -> Path:
    """Build, warm up and save to `folder`; a folder that is there and was made from the same settings is used again.

    `warmup.jsonl` beside the model holds the loss per step and the validation loss. Raises ValueError when the folder
    holds a model of other settings.
    """
    made_of = {"tiny": vars(config), "seed": seed, "corpus": corpus.provenance}
    stamp = json.dumps(made_of, sort_keys=True, default=str)
    if folder.exists():
        if (folder / "made_of.json").read_text() != stamp:
            raise ValueError(
                f"model folder {folder} was built from other settings; remove it, or choose another --name"
            )
        return folder
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus.train, config.vocabulary)
    chat = Chat(tokenizer)
    model = build(config, tokenizer)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "warmup.jsonl").open("w") as log:
        for row in warm_up(model, chat, corpus, config, seed=seed):
            log.write(json.dumps(row) + "\n")
            if "valid/loss" in row:
                say(f"  warm-up {row['step']}/{config.warmup_steps}  loss {row['loss']:.3f}  "
                    f"valid perplexity {row['valid/perplexity']:.1f}  {row['tokens_per_s']:.0f} tokens/s\n")  # fmt: skip
    transformers_logging.disable_progress_bar()
    model.save_pretrained(partial)
    chat.tokenizer.save_pretrained(partial)
    (partial / "made_of.json").write_text(stamp)
    os.replace(partial, folder)
    return folder


def warm_up(
    model: PreTrainedModel, chat: Chat, corpus: Corpus, config: TinyConfig, *, seed: int
) -> Iterator[Mapping[str, float]]:
    """Supervised steps (next-token cross-entropy on the therapist's replies, one-cycle learning rate); a row a step.

    A step takes `warmup_batch` dialogues, and of each one reply again with only the turn that it answers, since PPO also
    asks for replies to single turns.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.warmup_lr, betas=(0.9, 0.95), weight_decay=0.01)
    batches = _batches(corpus.train, chat, config, seed)
    valid = [e for d in corpus.valid[: 8 * config.warmup_batch] for e in chat.dialogue(d, config.context)]
    started, tokens = time.perf_counter(), 0
    for step in range(1, config.warmup_steps + 1):
        progress = step / config.warmup_steps
        rate = config.warmup_lr * min(10 * progress, 0.55 + 0.45 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        loss = 0.0
        trained = sum(sum(e.mask) for e in batch)
        for part in (
            batch[: config.warmup_batch],
            batch[config.warmup_batch :],
        ):  # long ones and short ones: little padding
            share = reply_loss(model, part) * (sum(sum(e.mask) for e in part) / trained)
            share.backward()
            loss += float(share.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(len(e.token_ids) for e in batch)
        pace = tokens / (time.perf_counter() - started)
        row = {"step": step, "loss": loss, "lr": rate, "tokens_per_s": pace}
        if step % max(config.warmup_steps // 6, 1) == 0 or step == config.warmup_steps:
            with torch.no_grad():
                pieces = [valid[i : i + config.warmup_batch] for i in range(0, len(valid), config.warmup_batch)][:8]
                losses = [float(reply_loss(model, piece)) for piece in pieces]
            mean = sum(losses) / len(losses)
            row |= {"valid/loss": mean, "valid/perplexity": math.exp(mean)}
        yield row


def _batches(dialogues: Sequence[Dialogue], chat: Chat, config: TinyConfig, seed: int) -> Iterator[list[Example]]:
    order: list[Dialogue] = []
    shuffler = random.Random(seed)
    usable = [d for d in dialogues if any(a.speaker is Speaker.CLIENT for a in merged(d.turns)[:-1])]
    while True:
        if len(order) < config.warmup_batch:
            order += shuffler.sample(usable, len(usable))
            continue
        drawn, order = order[: config.warmup_batch], order[config.warmup_batch :]
        pairs = []
        for dialogue in drawn:
            turns = merged(dialogue.turns)
            answers = [(asked, said) for asked, said in itertools.pairwise(turns) if said.speaker is Speaker.THERAPIST]
            asked, said = shuffler.choice(answers)
            ids, mask = chat.example([asked], said.text)
            pairs.append(Example(ids[: config.context], mask[: config.context]))
        yield [shuffler.choice(chat.dialogue(dialogue, config.context)) for dialogue in drawn] + pairs


def reply_loss(model: PreTrainedModel, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy, nats per token, of the tokens under the masks (0 when there are none)."""
    width = max(len(e.token_ids) for e in batch)
    tokens_BS = torch.tensor([[*e.token_ids, *[0] * (width - len(e.token_ids))] for e in batch])
    mask_BS = torch.tensor([[*e.mask, *[False] * (width - len(e.mask))] for e in batch])
    hidden_BSD = model.base_model(input_ids=tokens_BS, use_cache=False).last_hidden_state
    logits_NV = model.get_output_embeddings()(hidden_BSD[:, :-1][mask_BS[:, 1:]])
    total = functional.cross_entropy(logits_NV, tokens_BS[:, 1:][mask_BS[:, 1:]], reduction="sum")
    return total / mask_BS[:, 1:].sum().clamp_min(1)
