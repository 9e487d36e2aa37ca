"""A small tokenizer for models that are trained from nothing: byte-level BPE with tokens for the speakers."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rollout.types import Dialogue

PAD, CLIENT, THERAPIST, END, SYSTEM = "<|pad|>", "<|client|>", "<|therapist|>", "<|end|>", "<|system|>"
SPECIAL = [PAD, CLIENT, THERAPIST, END, SYSTEM]
SMALLEST = len(SPECIAL) + 256  # one token per byte, so that every text can be written

TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': '<|client|>', 'assistant': '<|therapist|>', 'system': '<|system|>'}[message['role']] }}"
    "{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|therapist|>{% endif %}"
)


def load_tokenizer(source: str, revision: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, or of a hub id at `revision` ("": its newest)."""
    return AutoTokenizer.from_pretrained(source, revision=revision or None)


def train_tokenizer(dialogues: Iterable[Dialogue], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) from the turns of `dialogues`.

    Special tokens take ids 0-4: `<|pad|> <|client|> <|therapist|> <|end|> <|system|>`; `<|end|>` ends every turn and is
    the eos token. The same dialogues give the same tokenizer; decoding undoes encoding for any text. The vocabulary may
    stay below `vocab_size` when the text has no more pairs to merge: size the model by `len(tokenizer)`. Raises
    `ValueError` when `vocab_size` has no room for the bytes.
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size must be at least {SMALLEST} (bytes and special tokens), is {vocab_size}; raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((turn.text for dialogue in dialogues for turn in dialogue.turns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[CLIENT, THERAPIST, SYSTEM],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
