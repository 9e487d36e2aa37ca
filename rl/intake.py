"""What a run is given, looked at before anything starts: whoever gave it something wrong waits for nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from cluster.model_files import model_files
from rewards.similarity import encoder_source
from rl.config import PpoRecipe, TinyConfig
from rl.tiny import make_tiny_model
from rollout.chat import Chat, PromptTooLong
from rollout.corpora import Corpus
from rollout.prompts import PromptStream, build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import train_tokenizer


def check_input(recipe: PpoRecipe, corpus: Corpus) -> None:
    """Raise ValueError or FileNotFoundError, naming the setting, when models or prompts cannot serve the recipe.

    Reads no weights. A model that is still to be built will have the tokenizer that is trained here.
    """
    if "similarity" in recipe.rewards.weights:
        _check_files("rewards.similarity.encoder", encoder_source(recipe.rewards.similarity.encoder))
    tokenizer = _tokenizer(recipe) if recipe.model.path else train_tokenizer(corpus.train, recipe.model.tiny.vocabulary)
    limit, least = recipe.prompts.max_context_tokens, recipe.prompts.min_reference_words
    chat = Chat(tokenizer, system=recipe.prompts.system)
    try:
        fixed = fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit)
    except PromptTooLong as error:
        raise ValueError(f"prompts.fixed: {error}") from error
    crisis = crisis_prompts(chat, max_tokens=limit)
    by_dialogue = (build_prompts([d], chat, max_tokens=limit, min_reference_words=least) for d in corpus.train)
    some = next(filter(None, by_dialogue), [])
    PromptStream(some, fixed, crisis, recipe.prompts, recipe.seed)  # refuses a source that has a share and no prompt
    if not recipe.model.path:
        _check_lessons(recipe.model.tiny, corpus, chat)


def with_model(recipe: PpoRecipe, corpus: Corpus, directory: Path) -> PpoRecipe:
    """The recipe with a model to load: its own, or the tiny one, built in the run directory. Folders become absolute.

    Raises FileNotFoundError when `model.path` looks like a folder and is none.
    """
    path = recipe.model.path
    if path:
        folder = _folder("model.path", path)
    else:
        folder = make_tiny_model(
            recipe.model.tiny,
            corpus,
            directory / "model",
            seed=recipe.seed,
            threads=os.cpu_count() or 1,
            say=lambda line: print(line, end="", flush=True),
        )
    return recipe if folder is None else replace(recipe, model=replace(recipe.model, path=str(folder.resolve())))


def _tokenizer(recipe: PpoRecipe) -> PreTrainedTokenizerBase:
    path, wanted = recipe.model.path, recipe.rollout.max_model_len
    source = _check_files("model.path", path) or path
    try:
        config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:  # transformers raises either
        raise ValueError(
            f"model.path {path!r} must be a folder that transformers loads or a hub id, and cannot be loaded ({error}); "
            "correct it, or download the model first"
        ) from error
    if hasattr(config, "max_position_embeddings") and wanted > config.max_position_embeddings:
        raise ValueError(
            f"rollout.max_model_len = {wanted} must not exceed the {config.max_position_embeddings} tokens that "
            f"model.path {path!r} reads; lower it and prompts.max_context_tokens"
        )
    return tokenizer


def _check_lessons(tiny: TinyConfig, corpus: Corpus, chat: Chat) -> None:
    """The tiny model learns from the train split and is measured on the valid split: each must hold a reply."""
    for split in ("train", "valid"):
        if not any(chat.dialogue(dialogue, tiny.context) for dialogue in corpus.splits[split]):
            raise ValueError(
                f"the {split} split must hold a therapist's reply to a client for model.tiny to learn, holds none within "
                f"model.tiny.context = {tiny.context} tokens; add dialogues, or give a model.path"
            )


def _check_files(knob: str, source: str) -> Path | None:
    """The folder that `source` names, whole; None for a hub id."""
    folder = _folder(knob, source)
    if folder is not None and (problems := model_files(folder).problems):
        raise ValueError(f"{knob} {source!r} must hold a whole model, {problems[0]}; copy or download it again")
    return folder


def _folder(knob: str, source: str) -> Path | None:
    folder = Path(source).expanduser()
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{knob} {source!r} holds no config.json; give a folder that transformers loads, or a hub id"
        )
    return folder if folder.is_dir() else None
