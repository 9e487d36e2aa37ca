"""What a supervised run teaches: the corpus, rendered once for all ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.sequences import trained_tokens, write_examples
from rl.sft_config import DataConfig, SftRecipe
from rollout.chat import Chat, Example
from rollout.corpora import Corpus
from rollout.fields import Fields, label_words
from rollout.pairs import make_pairs
from rollout.prompts import build_prompts
from rollout.tokenizer import load_tokenizer
from rollout.types import Dialogue, Prompt


@dataclass(frozen=True)
class Lesson:
    """What every rank needs besides the recipe: files in the run directory, and the prompts of the sample replies."""

    directory: Path
    label_words: Mapping[int, str]
    prompts: tuple[Prompt, ...]
    updates: int
    valid_every: int
    summary: str  # how many sequences there are, and how many replies were cut

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer."""
        return self.directory / "tokenizer"

    @property
    def failure(self) -> Path:
        """What a rank writes when it failed of something that would come again."""
        return self.directory / "failure"

    def examples(self, split: str) -> Path:
        """The rendered sequences of a split."""
        return self.directory / "sequences" / f"{split}.parquet"


def prepare(recipe: SftRecipe, corpus: Corpus, directory: Path) -> Lesson:
    """Render the corpus once for all ranks: tokenizer with label tokens, sequences, prompts of the sample replies.

    Raises ValueError when a split gives nothing to train or to validate on.
    """
    tokenizer, sft, data = load_tokenizer(recipe.model.path, recipe.model.revision), recipe.sft, recipe.data
    pairs = {split: make_pairs(corpus.splits[split], data.pairs) for split in ("train", "valid")}
    known = tokenizer.get_vocab()
    tokens = [token for token in Fields(recipe.fields).tokens(corpus.train) if token not in known]
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    chat = Chat(tokenizer, fields=recipe.fields)
    words = {tokenizer.convert_tokens_to_ids(token): label_words(token) for token in tokens}
    train, valid = (_sequences(pairs[split], chat, data, split) for split in ("train", "valid"))
    cut = sum(_is_cut(example, chat) for example in train)
    count = min(len(valid), sft.valid_sequences)
    valid = [valid[k * len(valid) // count] for k in range(count)]  # evenly over the split
    room = data.max_tokens - sft.sample_tokens
    asked = build_prompts(
        pairs["valid"], chat, max_tokens=min(data.context_tokens or room, room), min_reference_words=1
    )
    step = max(len(asked) // max(sft.samples, 1), 1)
    updates = max(math.ceil(sft.epochs * len(train) / sft.batch), 1)
    lesson = Lesson(
        directory=directory.resolve(),
        label_words=words,
        prompts=tuple(asked[::step][: sft.samples]),
        updates=updates,
        valid_every=min(sft.valid_every or max(len(train) // sft.batch, 1), updates),
        summary=f"{len(train)} training sequences ({cut} with a reply cut at data.max_tokens = {data.max_tokens}), {len(valid)} to "
        f"validate on; {updates} updates at most",
    )
    chat.tokenizer.save_pretrained(lesson.tokenizer)
    write_examples(lesson.examples("train"), train)
    write_examples(lesson.examples("valid"), valid)
    return lesson


def _sequences(dialogues: Sequence[Dialogue], chat: Chat, data: DataConfig, split: str) -> list[Example]:
    """The sequences of a split. Of those whose reply was cut, one for each reply as it was cut: of a long session's cumulative
    pairs many are cut to the same beginning."""
    examples, seen = list[Example](), set[tuple[int, ...]]()
    for dialogue in dialogues:
        for example in chat.dialogue(dialogue, data.max_tokens, context_tokens=data.context_tokens):
            trained = tuple(itertools.compress(example.token_ids, example.mask))
            if not (_is_cut(example, chat) and trained in seen):
                examples.append(example)
            seen.add(trained)
    if not trained_tokens(examples):
        raise ValueError(
            f"data.pairs = {data.pairs} must make a sequence with a reply of the {split} split, makes none within "
            f"data.max_tokens = {data.max_tokens}; raise it, or choose other pairs"
        )
    return examples


def _is_cut(example: Example, chat: Chat) -> bool:
    return example.mask[-1] and example.token_ids[-1] not in chat.end_ids
