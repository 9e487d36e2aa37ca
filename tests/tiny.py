"""Tiny models and recipes that the tests share: real shapes, built in a second, no warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.settings import load
from rl.config import PpoRecipe, Shape, TinyConfig
from rl.tiny import build
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import load as load_corpus
from rollout.tokenizer import train_tokenizer

RECIPES = Path(__file__).parent.parent / "rl" / "recipes"
TARGETS = {"gpt2": ("c_attn",), "mistral": ("q_proj", "v_proj"), "mixtral": ("q_proj", "v_proj")}
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")  # of Mixtral


def save_tiny(folder: Path, shape: Shape = "mixtral", *, seed: int = 0) -> Path:
    """An untrained model of `shape` (2 layers, 64 wide) with the sample corpus's tokenizer, as a folder."""
    torch.manual_seed(seed)
    corpus = load_corpus(CorpusConfig())
    chat = Chat(train_tokenizer(corpus.train, 600))
    config = TinyConfig(shape=shape, hidden=64, heads=2, layers=2, experts=4, context=192)
    build(config, chat.tokenizer).save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


def quick_recipe(model: Path, runs: Path, **knobs: Any) -> PpoRecipe:
    """The local recipe cut down to seconds; `knobs` are dotted names with __ for dots."""
    sample = {
        "name": "test",
        "runs": str(runs),
        "steps": 2,
        "model.path": str(model),
        "prompts.per_step": 4,
        "prompts.max_context_tokens": 96,
        "sampling.n": 2,
        "sampling.max_tokens": 16,
        "rollout.max_model_len": 128,
        "rollout.kv_cache_gb": 0.03125,
        "rewards.similarity.weight": 0.0,
        "rewards.crisis.classifier": False,  # or every reward actor would load a sentence encoder
        "learner.micro_batch": 4,
        "checkpoint.every": 1,
        "tracking.tensorboard": False,
        **{name.replace("__", "."): value for name, value in knobs.items()},
    }
    return load(PpoRecipe, RECIPES / "local.toml", sample=sample)
