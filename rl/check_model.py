"""What `attune check` says of models: their files, their size, and whether prompts and adapters fit them."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from cluster.findings import Finding, missing, ok, size, warn
from cluster.model_files import model_files
from rewards.config import RewardsConfig
from rewards.encoder import encoder_source
from rl.config import ModelConfig, PpoRecipe
from rl.intake import with_model
from rl.memory_model import Counts, policy_bytes
from rl.policy import ActorCritic
from rl.sft_config import SftModelConfig, SftRecipe
from rl.tiny import build
from rl.tuning import TunedPolicy
from rollout.chat import Chat
from rollout.corpora import Corpus
from rollout.prompts import build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import train_tokenizer

TRIED_DIALOGUES = 50
AGAIN = "copy or download it again"


class Model(NamedTuple):
    """What is known of the policy without its weights; `folder` is None when the run will build it."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    counts: Counts
    folder: Path | None


def encoder(config: RewardsConfig) -> Iterator[Finding]:
    """The sentence encoder's files, when something in use reads texts with it."""
    if not config.encodes:
        return
    try:
        source = encoder_source(config.encoder.path)
        folder = folder_of(source)
    except ValueError as error:
        yield missing("encoder", str(error))
        return
    if folder is None:
        yield not_here("encoder", source)
        return
    files = model_files(folder)
    yield from (missing("encoder", f"{folder} {problem}", AGAIN) for problem in files.problems)
    if not files.problems:
        yield ok("encoder", f"{config.encoder.path}: {number(files.parameters)} parameters")


def policy(recipe: PpoRecipe | SftRecipe, corpus: Corpus) -> Generator[Finding, None, Model | None]:
    """The policy's files, or the small model that the run will build: its parameters, and those that train."""
    where: Path | str
    try:
        if recipe.model.path or (recipe.directory / "model").exists():
            path = with_model(recipe, corpus, recipe.directory).model.path
            folder = folder_of(path, recipe.model.revision)
            if folder is None:
                yield not_here("model", path)
                return None
            where, files = folder, model_files(folder)
            if files.problems:
                yield from (missing("model", f"{folder} {problem}", AGAIN) for problem in files.problems)
                return None
            config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            held, trained = learner_counts(recipe.model, config)
            model = Model(config, tokenizer, Counts(files.parameters, held, trained), folder)
        else:
            tokenizer = train_tokenizer(corpus.train, recipe.model.tiny.vocabulary)
            where = f"a small {recipe.model.tiny.shape}, built by the run"
            with torch.device("meta"):
                tiny = build(recipe.model.tiny, tokenizer)
            held, trained = learner_counts(recipe.model, tiny.config)
            model = Model(tiny.config, tokenizer, Counts(tiny.num_parameters(), held, trained), None)
    except (ValueError, OSError) as error:
        yield missing("model", str(error))
        return None
    if model.counts.policy == 0:
        yield warn("model", f"{where}: pickled weights, whose size is not known", "save it as safetensors")
        return model
    weights = size(policy_bytes(recipe, model.counts))
    yield ok("model", f"{where}: {number(model.counts.policy)} parameters, {weights} in {recipe.model.dtype}")
    yield ok(
        "training", f"{recipe.model.tuning}: {number(trained)} of {number(held)} parameters that the learner holds"
    )
    knob, wanted = recipe.longest
    if hasattr(model.config, "max_position_embeddings") and wanted > model.config.max_position_embeddings:
        there = f"the model reads {model.config.max_position_embeddings} tokens, {knob} is {wanted}"
        yield missing("context", there, f"lower {knob}")
    return model


def learner_counts(model: ModelConfig | SftModelConfig, config: PretrainedConfig) -> tuple[int, int]:
    """Parameters that a learner holds and trains. Raises ValueError when the adapters' targets are not in the model."""
    kind: Any = TunedPolicy if isinstance(model, SftModelConfig) else ActorCritic
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT is surprised by a second adapter
        held = kind(model, lambda: AutoModelForCausalLM.from_config(config))
    trained = sum(parameter.numel() for group in held.trainable().values() for parameter in group)
    return sum(parameter.numel() for parameter in held.parameters()), trained


def number(count: int) -> str:
    """A number of parameters for people."""
    return f"{count / 1e6:,.4g} M" if count < 1e9 else f"{count / 1e9:,.4g} G"


def folder_of(source: str, revision: str = "") -> Path | None:
    """The folder that transformers reads `source` from: a local one, else the hub's cache; None when it is in neither.

    Raises ValueError when `source` cannot be a hub id.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def not_here(subject: str, source: str) -> Finding:
    """A hub id that was never downloaded."""
    found = f"{source} is no folder and not in this machine's hub cache: every node downloads it at the start"
    return warn(subject, found, f"`hf download {source}` first tells whether it can, or give a folder")


def prompts(recipe: PpoRecipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether the tokenizer can render prompts, and they fit."""
    limit, some = recipe.prompts.max_context_tokens, corpus.train[:TRIED_DIALOGUES]
    try:
        chat = Chat(tokenizer, system=recipe.prompts.system)
        fixed = fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit)
        crisis = crisis_prompts(chat, max_tokens=limit)
        built = build_prompts(some, chat, max_tokens=limit, min_reference_words=recipe.prompts.min_reference_words)
    except ValueError as error:
        return missing("prompts", str(error))
    counts = f"{len(fixed)} fixed, {len(crisis)} crisis, {len(built)} from the first {len(some)} dialogues"
    if not built:
        return missing("prompts", counts, "lower prompts.min_reference_words, or raise prompts.max_context_tokens")
    return ok("prompts", f"{counts}, each within {limit} tokens")
