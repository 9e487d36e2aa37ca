"""The renderer: what is trained is what is generated, for tokenizers of every kind the project meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rollout.chat import OPENING, Chat, PromptTooLong, merged
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.tokenizer import SMALLEST, train_tokenizer
from rollout.types import Dialogue, Speaker, Turn

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def client(text: str) -> Turn:
    return Turn(Speaker.CLIENT, text)


def therapist(text: str) -> Turn:
    return Turn(Speaker.THERAPIST, text)


HARD = Dialogue(
    "hard/train/0",
    (
        therapist("Welcome back."),
        therapist("How was it?"),
        client("(sigh) not good \u2014 it hurts \U0001f614"),
        client("I can't go on like this..."),
        therapist("...I see. 'Tis heavy [isn't it]?"),
        client("yes"),
        therapist("What would help  you\nnow?"),
        client("No idea!"),
        therapist("That is all right."),
    ),
)
PLAIN = Dialogue(
    "plain/train/0", (client("it hurts"), therapist("i hear you"), client("still bad"), therapist("say more about it"))
)


def words_tokenizer(_: Sequence[str]) -> PreTrainedTokenizerFast:
    """Whole words, speakers as special tokens. It knows PLAIN's words only."""
    specials = ["<unk>", "<|client|>", "<|therapist|>", "<|end|>"]
    words = sorted({word for turn in PLAIN.turns for word in turn.text.split()})
    model = models.WordLevel({word: index for index, word in enumerate(specials + words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for message in messages %}{{ '<|client|>' if message['role'] == 'user' else '<|therapist|>' }}"
        "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|therapist|>{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|client|>", "<|therapist|>"],
        chat_template=template,
    )


def gpt2_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token and no chat template, as GPT-2's."""
    tokenizer = byte_level(texts, ["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def mistral_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE with a leading space and byte fallback, as Mixtral's; roles must alternate."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials + fallback, show_progress=False)
    tokenizer.train_from_iterator([word for text in texts for word in text.split()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=MISTRAL
    )


def chatml_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Turns end with a token that is not the end of text, and with a newline after it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def own_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer([Dialogue("d", tuple(client(text) for text in texts))], 400)


def byte_level(texts: Sequence[str], specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


KINDS: dict[str, tuple[Callable[[Sequence[str]], PreTrainedTokenizerFast], Dialogue]] = {
    "words": (words_tokenizer, PLAIN),
    "own": (own_tokenizer, HARD),
    "gpt2": (gpt2_tokenizer, HARD),
    "mistral": (mistral_tokenizer, HARD),
    "chatml": (chatml_tokenizer, HARD),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Chat, Dialogue]:
    """A chat over each kind of tokenizer, and a dialogue that its vocabulary can say."""
    build, dialogue = KINDS[request.param]
    return Chat(build([turn.text for turn in HARD.turns])), dialogue


def replies(dialogue: Dialogue) -> list[tuple[tuple[Turn, ...], str]]:
    """(history, reply) of every therapist turn that answers the client."""
    turns = merged(dialogue.turns)
    return [(turns[:i], turn.text) for i, turn in enumerate(turns) if i and turn.speaker is Speaker.THERAPIST]


def trained(chat: Chat, token_ids: Sequence[int], mask: Sequence[bool]) -> list[str]:
    """The text of each run of trained tokens, checked to end with the end token and to hold no other."""
    runs = [[token for token, _ in run] for on, run in groupby(zip(token_ids, mask, strict=True), lambda x: x[1]) if on]
    for run in runs:
        assert run[-1] == chat.end_ids[0]
        assert not set(run[:-1]) & set(chat.end_ids)
    return [str(chat.tokenizer.decode(run[:-1])).strip() for run in runs]


def test_the_mask_of_an_example_is_the_reply(kind: tuple[Chat, Dialogue]) -> None:
    """Of every example exactly the reply and its end token are trained: decoded, they are the reply."""
    chat, dialogue = kind
    for history, reply in replies(dialogue):
        assert trained(chat, *chat.example(history, reply)) == [reply]


def test_training_and_generation_render_the_same(kind: tuple[Chat, Dialogue]) -> None:
    """An example is the ids of its prompt, followed by trained ids only: the reply that generation would append."""
    chat, dialogue = kind
    for history, reply in replies(dialogue):
        prompt_ids = chat.prompt_ids(history, 10_000)
        token_ids, mask = chat.example(history, reply)
        assert token_ids[: len(prompt_ids)] == prompt_ids
        assert mask == (False,) * len(prompt_ids) + (True,) * (len(token_ids) - len(prompt_ids))


def test_a_whole_dialogue_trains_each_reply_in_its_generation_context(kind: tuple[Chat, Dialogue]) -> None:
    """One sequence holds all replies, and cut before any reply it is the prompt from which that reply is generated."""
    chat, dialogue = kind
    (example,) = chat.dialogue(dialogue, 10_000)
    expected = replies(dialogue)
    assert trained(chat, *example) == [reply for _, reply in expected]
    for history, reply in expected:
        single = chat.example(history, reply)
        assert example.token_ids[: len(single.token_ids)] == single.token_ids
        assert chat.prompt_ids(history, 10_000) == example.token_ids[: single.mask.index(True)]


def test_a_reply_never_reaches_into_its_prompt() -> None:
    """Where the tokenizer would merge the reply's first letters with the prompt's last, both keep ids of their own."""
    tokenizer = gpt2_tokenizer(["]... [/INST]..."] * 9)
    tokenizer.chat_template = MISTRAL
    chat, history = Chat(tokenizer), (client("go on"),)
    prompt_ids = chat.prompt_ids(history, 10_000)
    together = tokenizer(str(tokenizer.decode(list(prompt_ids))) + "...", add_special_tokens=False)["input_ids"]
    assert tuple(together[: len(prompt_ids)]) != prompt_ids
    token_ids, mask = chat.example(history, "... yes")
    assert token_ids[: len(prompt_ids)] == prompt_ids
    assert trained(chat, token_ids, mask) == ["... yes"]


def test_long_dialogues_train_each_reply_once(kind: tuple[Chat, Dialogue]) -> None:
    """Whatever the limit, no sequence exceeds it, and the replies are trained once each, in their order."""
    chat, dialogue = kind
    shortest = max(len(chat.example(history[-1:], reply).token_ids) for history, reply in replies(dialogue))
    whole = len(chat.dialogue(dialogue, 10_000)[0].token_ids)
    assert shortest < whole
    for limit in range(shortest, whole + 1):
        examples = chat.dialogue(dialogue, limit)
        assert all(len(example.token_ids) == len(example.mask) <= limit for example in examples)
        texts = [text for example in examples for text in trained(chat, *example)]
        assert texts == [reply for _, reply in replies(dialogue)]
        assert (len(examples) == 1) is (limit == whole)


def test_a_new_sequence_opens_half_full() -> None:
    """In a dialogue of many limits' length every later sequence has room for as much again as it opens with."""
    chat = Chat(own_tokenizer(["abc"]))
    turns = [turn for n in range(50) for turn in (client(f"ask {n}"), therapist(f"tell {n}"))]
    first, *others = chat.dialogue(Dialogue("d/train/0", tuple(turns)), 200)
    assert sum(len(trained(chat, *example)) for example in (first, *others)) == 50
    assert len(others) > 3
    for example in others:
        opening = example.mask.index(False, example.mask.index(True))
        assert 60 < opening <= 100


def test_replies_that_do_not_fit_are_cut_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A reply longer than its room is trained up to the limit, without an end; one without room is left out, logged.

    A client turn longer than half of the sequence loses its beginning first.
    """
    chat = Chat(own_tokenizer(["abc"]))
    dialogue = Dialogue("d/train/0", (client("a" * 20), therapist("b" * 50), client("c"), therapist("d")))
    for limit, asked in ((50, 20), (40, 17), (20, 7)):
        whole = chat.example((client("a" * asked),), "b" * 50)
        cut, after = chat.dialogue(dialogue, limit)
        assert cut.token_ids == whole.token_ids[:limit]
        assert cut.mask == whole.mask[:limit]
        assert cut.mask.count(True) == limit - asked - 3
        assert chat.end_ids[0] not in [token for token, on in zip(*cut, strict=True) if on]
        assert trained(chat, *after) == ["d"]
    assert chat.dialogue(dialogue, 3) == []
    assert "d/train/0#1: no token of the reply fits in 3 tokens" in caplog.text


def test_old_turns_are_dropped_until_the_prompt_fits(kind: tuple[Chat, Dialogue]) -> None:
    """Every prompt within the limit is the one of the longest window, opening with the client, that fits."""
    chat, dialogue = kind
    history = replies(dialogue)[-1][0]
    starts = [0] + [i for i, turn in enumerate(history) if i and turn.speaker is Speaker.CLIENT]
    windows = [chat.prompt_ids(history[start:], 10_000) for start in starts]
    for limit in range(len(windows[-1]), len(windows[0]) + 1):
        assert chat.prompt_ids(history, limit) == next(ids for ids in windows if len(ids) <= limit)


def test_a_last_turn_that_does_not_fit_is_an_error(kind: tuple[Chat, Dialogue]) -> None:
    """The message says how long the shortest prompt is, the limit, and what to change."""
    chat, dialogue = kind
    history = replies(dialogue)[-1][0]
    shortest = len(chat.prompt_ids(history[-1:], 10_000))
    with pytest.raises(PromptTooLong, match=rf"fit in {shortest - 1} tokens, takes {shortest} .*max_context_tokens"):
        chat.prompt_ids(history, shortest - 1)


def test_a_prompt_ends_with_the_client(kind: tuple[Chat, Dialogue]) -> None:
    """There is nothing to answer in an empty history or after the therapist's own words."""
    chat, dialogue = kind
    for history in ((), dialogue.turns):
        with pytest.raises(ValueError, match="must end with the client's turn"):
            chat.prompt_ids(history, 10_000)


@pytest.mark.parametrize("name", ["own", "gpt2", "mistral", "chatml"])
def test_the_system_text_is_said_once_and_survives_dropping(name: str) -> None:
    """However many turns are dropped, the system text stands before the client's words, once."""
    build, dialogue = KINDS[name]
    chat = Chat(build([turn.text for turn in HARD.turns]), system="Listen first.")
    history = replies(dialogue)[-1][0]
    for limit in (10_000, len(chat.prompt_ids(history[-1:], 10_000))):
        text = str(chat.tokenizer.decode(list(chat.prompt_ids(history, limit))))
        assert text.count("Listen first.") == 1
        assert text.index("Listen first.") < text.index("No idea!")


def test_a_therapists_opening_is_introduced_only_where_the_template_demands_it() -> None:
    """Mistral's template refuses a session that the assistant opens: "Hello." precedes it there, and nowhere else."""
    texts = {
        name: str(chat.tokenizer.decode(list(chat.prompt_ids(HARD.turns[:4], 10_000))))
        for name in ("own", "gpt2", "mistral", "chatml")
        for chat in [Chat(KINDS[name][0]([turn.text for turn in HARD.turns]))]
    }
    assert f"[INST] {OPENING} [/INST]" in texts["mistral"]
    assert [name for name, text in texts.items() if OPENING in text] == ["mistral"]
    assert all("Welcome back. How was it?" in text for text in texts.values())


def test_the_plain_template_reads_as_documented() -> None:
    """GPT-2's prompt is the plain text of the module's docstring."""
    chat = Chat(gpt2_tokenizer(["abc"]), system="Be kind.")
    ids = chat.prompt_ids((client("a"), therapist("b"), client("c")), 10_000)
    assert chat.tokenizer.decode(list(ids)) == "Be kind.\nClient: a\nTherapist: b<|endoftext|>\nClient: c\nTherapist:"


def test_nobody_ends_a_turn_by_writing_a_special_token(kind: tuple[Chat, Dialogue]) -> None:
    """Special tokens written by client or therapist are not read as such: only the template's own are in the ids."""
    chat, _ = kind
    ends = "".join(str(token) for token in chat.tokenizer.added_tokens_decoder.values())
    plain = chat.example((client("it hurts"),), "i hear")
    forged = chat.example((client(f"it {ends} hurts"),), f"i {ends} hear{ends}")
    special = set(chat.tokenizer.added_tokens_decoder)
    assert [i for i in forged.token_ids if i in special] == [i for i in plain.token_ids if i in special]


def test_end_ids_hold_the_turn_end_first_and_the_text_end_too() -> None:
    """Generation stops at the token that training shows, and at the tokenizer's own end of text."""
    chat = Chat(chatml_tokenizer(["abc"]))
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.end_ids)) == ["<|im_end|>", "<|endoftext|>"]
    chat = Chat(mistral_tokenizer(["abc"]))
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.end_ids)) == ["</s>"]


def test_the_tokenizer_given_is_not_changed() -> None:
    """The template is installed in the chat's own copy, which a checkpoint saves."""
    tokenizer = gpt2_tokenizer(["abc"])
    chat = Chat(tokenizer)
    assert tokenizer.chat_template is None
    assert chat.tokenizer.chat_template


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}bot:{% endif %}",
    ],
    ids=["no end token", "generation prompt absent from training"],
)
def test_templates_that_cannot_train_are_refused(template: str) -> None:
    """A template whose replies never end, or that trains another text than it generates from, is an error at once."""
    tokenizer = chatml_tokenizer(["abc"])
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="give the tokenizer another chat_template"):
        Chat(tokenizer)


def test_a_tokenizer_without_template_needs_an_end() -> None:
    """Without an eos token a plain-text reply would never end."""
    with pytest.raises(ValueError, match="must have an eos token"):
        Chat(PreTrainedTokenizerFast(tokenizer_object=byte_level(["abc"], [])))


def test_adjacent_turns_are_merged() -> None:
    """Merging alternates the speakers and keeps every word in its order; the last of equal labels stays."""
    turns = [
        Turn(Speaker.CLIENT, "a", {"stars": "1", "x": "y"}),
        Turn(Speaker.CLIENT, "b", {"stars": "2"}),
        therapist("c"),
    ]
    assert merged(turns) == (Turn(Speaker.CLIENT, "a b", {"stars": "2", "x": "y"}), therapist("c"))
    assert merged(merged(HARD.turns)) == merged(HARD.turns)


@pytest.fixture(scope="module")
def sample_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(load(CorpusConfig()).train, 600)


@settings(deadline=None)
@given(text=st.text())
def test_decoding_undoes_encoding(sample_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Any text, in any script, comes back letter for letter."""
    assert sample_tokenizer.decode(sample_tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_same_dialogues_give_the_same_tokenizer(sample_tokenizer: PreTrainedTokenizerFast) -> None:
    """Training twice gives the same merges and ids; the special tokens come first."""
    again = train_tokenizer(load(CorpusConfig()).train, 600)
    assert again.backend_tokenizer.to_str() == sample_tokenizer.backend_tokenizer.to_str()
    specials = ["<|pad|>", "<|client|>", "<|therapist|>", "<|end|>", "<|system|>"]
    assert sample_tokenizer.convert_ids_to_tokens(list(range(5))) == specials
    assert (len(sample_tokenizer), sample_tokenizer.eos_token, sample_tokenizer.pad_token_id) == (600, "<|end|>", 0)


def test_a_saved_tokenizer_renders_the_same(sample_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Saved and loaded by AutoTokenizer, it renders every dialogue of the sample to the same ids and masks."""
    Chat(sample_tokenizer).tokenizer.save_pretrained(tmp_path)
    before, after = Chat(sample_tokenizer), Chat(AutoTokenizer.from_pretrained(tmp_path))
    assert after.end_ids == before.end_ids == (3,)
    for dialogue in load(CorpusConfig()).test:
        assert after.dialogue(dialogue, 128) == before.dialogue(dialogue, 128)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    """Below one token per byte and special token some texts could not be written."""
    with pytest.raises(ValueError, match=f"vocab_size must be at least {SMALLEST}"):
        train_tokenizer([PLAIN], SMALLEST - 1)
    assert len(train_tokenizer([PLAIN], SMALLEST)) == SMALLEST
