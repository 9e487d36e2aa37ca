"""What a run is given, looked at before anything starts: whoever gave it something wrong waits for nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.model_files import model_files
from rewards.encoder import encoder_source
from rl.config import PpoRecipe, PretrainedConfig, TinyConfig
from rl.sft_config import SftModelConfig, SftRecipe
from rollout.chat import Chat
from rollout.corpora import Corpus
from rollout.fields import saved_fields
from rollout.prompts import PromptStream, build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WITHOUT_ADAPTERS = ("gpt2",)  # vLLM's model of it takes no LoRA
Recipe = TypeVar("Recipe", bound=PpoRecipe | SftRecipe)


def check_input(recipe: PpoRecipe, corpus: Corpus) -> None:
    """Raise ValueError or FileNotFoundError, naming the setting, when models or prompts cannot serve the recipe.

    Reads no weights. A model that is still to be built will have the tokenizer that is trained here.
    """
    if recipe.rewards.encodes:
        check_files("rewards.encoder.path", encoder_source(recipe.rewards.encoder.path))
    tokenizer = tokenizer_of(recipe.model, corpus, *recipe.longest)
    if "emotion_label" in recipe.rewards.measured and saved_fields(tokenizer).emotion != "predicted":
        raise ValueError(
            f"rewards.emotion_label needs a model that writes the emotion before its reply, model.path {recipe.model.path!r} was "
            "not taught to; fine-tune it with fields.emotion = predicted, or set rewards.emotion_label.weight = 0"
        )
    if recipe.rollout.router_replay:
        _check_routers(recipe.model)
    limit, least = recipe.prompts.max_context_tokens, recipe.prompts.min_reference_words
    chat = Chat(tokenizer, system=recipe.prompts.system)
    fixed = fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit)
    crisis = crisis_prompts(chat, max_tokens=limit)
    by_dialogue = (build_prompts([d], chat, max_tokens=limit, min_reference_words=least) for d in corpus.train)
    some = next(filter(None, by_dialogue), [])
    PromptStream(some, fixed, crisis, recipe.prompts, recipe.seed)  # refuses a source that has a share and no prompt
    if not recipe.model.path:
        _check_lessons(recipe.model.tiny, corpus, chat)


def with_model(recipe: Recipe, corpus: Corpus, directory: Path) -> Recipe:
    """The recipe with a model to load: its own, or the tiny one, built in the run directory. Folders become absolute.

    Raises FileNotFoundError when `model.path` looks like a folder and is none.
    """
    path = recipe.model.path
    if path:
        folder = _folder("model.path", path)
    else:
        from rl.tiny import make_tiny_model

        folder = make_tiny_model(
            recipe.model.tiny,
            corpus,
            directory / "model",
            seed=recipe.seed,
            threads=len(os.sched_getaffinity(0)),
            say=lambda line: print(line, end="", flush=True),
        )
    if folder is None:
        return recipe
    return replace(recipe, model=replace(recipe.model, path=str(folder.resolve())))  # type: ignore[arg-type]


def tokenizer_of(model: PretrainedConfig, corpus: Corpus, knob: str, wanted: int) -> PreTrainedTokenizerBase:
    """The tokenizer that the model has, or will be built with. Raises ValueError when the model cannot be loaded, or reads
    less than the `wanted` tokens of setting `knob`."""
    if not model.path:
        return train_tokenizer(corpus.train, model.tiny.vocabulary)
    from transformers import AutoConfig

    path, revision = model.path, model.revision
    source = check_files("model.path", path) or path
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or None)
        tokenizer = load_tokenizer(str(source), revision)
    except (OSError, ValueError) as error:  # transformers raises either
        raise ValueError(
            f"model.path {path!r} must be a folder that transformers loads or a hub id, and cannot be loaded ({error}); "
            "correct it, or download the model first"
        ) from error
    if hasattr(config, "max_position_embeddings") and wanted > config.max_position_embeddings:
        raise ValueError(
            f"{knob} = {wanted} must not exceed the {config.max_position_embeddings} tokens that model.path {path!r} reads; "
            "lower it"
        )
    return tokenizer


def check_publish(recipe: PpoRecipe, *, on_gpu: bool) -> None:
    """Raise ValueError when vLLM cannot apply the adapter that `publish.what` = adapter would send. Reads no weights."""
    if recipe.publish.what != "adapter":
        return
    if recipe.model.path:
        from transformers import AutoConfig

        source = check_files("model.path", recipe.model.path) or recipe.model.path
        config = AutoConfig.from_pretrained(source, revision=recipe.model.revision or None)
        kind, experts = config.model_type, "num_local_experts" in config.to_dict()
    else:
        kind, experts = recipe.model.tiny.shape, recipe.model.tiny.shape == "mixtral"
    remedy = "set publish.what = merged"
    if kind in _WITHOUT_ADAPTERS:
        raise ValueError(f"publish.what = adapter needs a model that vLLM adapts, {kind} is none; {remedy}")
    if experts and not on_gpu:
        raise ValueError(
            f"publish.what = adapter needs a GPU for a mixture of experts, {kind} is to run on CPUs, for which vLLM has no kernel "
            f"of experts beside adapters; {remedy}"
        )


def check_tuning(model: SftModelConfig) -> None:
    """Raise ValueError when the model has nothing that its tuning could train. Reads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rl.tuning import TunedPolicy

    config = AutoConfig.from_pretrained(model.path, revision=model.revision or None)
    with torch.device("meta"):
        TunedPolicy(model, lambda: AutoModelForCausalLM.from_config(config))


def _check_routers(model: PretrainedConfig) -> None:
    """Router replay needs routers, and knows those of one kind of model."""
    from transformers import AutoConfig

    kind = model.tiny.shape
    if model.path:
        kind = AutoConfig.from_pretrained(model.path, revision=model.revision or None).model_type
    if kind != "mixtral":
        raise ValueError(
            f"rollout.router_replay must be false for a model without Mixtral's routers, model.path {model.path!r} is a {kind}; "
            "set rollout.router_replay = false"
        )


def _check_lessons(tiny: TinyConfig, corpus: Corpus, chat: Chat) -> None:
    """The tiny model learns from the train split and is measured on the valid split: each must hold a reply."""
    for split in ("train", "valid"):
        if not any(chat.dialogue(dialogue, tiny.context) for dialogue in corpus.splits[split]):
            raise ValueError(
                f"the {split} split must hold a therapist's reply to a client for model.tiny to learn, holds none within "
                f"model.tiny.context = {tiny.context} tokens; add dialogues, or give a model.path"
            )


def check_files(knob: str, source: str) -> Path | None:
    """The folder that `source` names, whole; None for a hub id."""
    folder = _folder(knob, source)
    if folder is not None and (problems := model_files(folder).problems):
        raise ValueError(f"{knob} {source!r} must hold a whole model, {problems[0]}; copy or download it again")
    return folder


def _folder(knob: str, source: str) -> Path | None:
    folder = Path(source).expanduser()
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{knob} {source!r} must hold a model, holds a PEFT adapter alone (prefix and prompt tuning have no weights to "
            "merge); take a model that was tuned otherwise, such as by lora"
        )
    if looks_local and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{knob} {source!r} holds no config.json; give a folder that transformers loads, or a hub id"
        )
    return folder if folder.is_dir() else None
