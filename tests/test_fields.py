"""Labels in the text: what is written, what is trained, who may write it, and how much history stands before it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rollout.chat import Chat, Example, merged
from rollout.config import CorpusConfig, FieldsConfig
from rollout.corpora import SAMPLE, load
from rollout.corpora.hope import SPELLINGS
from rollout.fields import Fields, annotated, check_fields, label_words, read_labels, saved_fields
from rollout.types import Dialogue, Speaker, Turn
from tests.test_chat import HARD, KINDS, client, therapist, trained

Style = Literal["tokens", "text"]
MODES: tuple[Literal["none", "given", "predicted"], ...] = ("none", "given", "predicted")
ACTS = ("GT", "IRQ", "ID", "NA", "ACK", "PA", "ORQ", "OD", "GC")
LABELLED = Dialogue(
    "hard/train/0",
    tuple(
        Turn(
            turn.speaker,
            turn.text,
            {"dialogue_act": act} | ({"strategy": f"Plan-{act} (b)"} if turn.speaker is Speaker.THERAPIST else {}),
        )
        for turn, act in zip(HARD.turns, ACTS, strict=True)
    ),
    {"emotion": "sadness"},
)
TURNS = merged(annotated(LABELLED))
REPLIES = [(TURNS[:k], turn) for k, turn in enumerate(TURNS) if k and turn.speaker is Speaker.THERAPIST]
COMBINATIONS = [FieldsConfig(*modes) for modes in product(MODES, MODES, MODES)]
ALL_GIVEN, ALL_PREDICTED = (FieldsConfig(mode, mode, mode) for mode in MODES[1:])


def chat_of(kind: str, fields: FieldsConfig, dialogues: Sequence[Dialogue] = (LABELLED,)) -> Chat:
    """A tokenizer of the kind with the label tokens of `dialogues`, as a run makes it."""
    tokenizer = KINDS[kind][0]([turn.text for turn in HARD.turns])
    tokens = Fields(fields).tokens(dialogues)
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return Chat(tokenizer, fields=fields)


def piece(name: str, label: str, style: Style) -> str:
    return f"<|{name}:{label}|>" if style == "tokens" else f"[{name}: {label}]"


def pieces(turn: Turn, style: Style, *names: str) -> list[str]:
    return [piece(name, turn.labels[name], style) for name in names if name in turn.labels]


def solid(text: str) -> str:
    """Without blanks: tokenizers differ in those around special tokens."""
    return re.sub(r"\s", "", text)


def decoded(chat: Chat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def prompt_of(example: Example) -> tuple[int, ...]:
    return example.token_ids[: example.mask.index(True)]


@pytest.mark.parametrize("style", ["tokens", "text"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_what_is_trained_is_the_reply_and_its_predicted_labels(kind: str, style: Style) -> None:
    """The mask decodes to the predicted labels and the reply, whatever the other fields do; a given label is not trained.

    The prompt is exactly the part before it, and ends with the labels that are given of the reply.
    """
    for modes in COMBINATIONS:
        fields = replace(modes, style=style)
        chat = chat_of(kind, fields)
        for history, reply in REPLIES:
            example = chat.example(history, reply.text, reply.labels)
            asked = [name for name in ("dialogue_act", "strategy") if vars(fields)[name] == "given"]
            told = [name for name in ("emotion", "dialogue_act", "strategy") if vars(fields)[name] == "predicted"]
            (text,) = trained(chat, *example)
            assert solid(text) == solid("".join(pieces(reply, style, *told)) + reply.text)
            assert text.endswith(reply.text)
            assert read_labels(text) == ({name: reply.labels[name] for name in told}, reply.text)
            assert prompt_of(example) == chat.prompt_ids(history, 10_000, reply.labels)
            assert solid(decoded(chat, prompt_of(example))).endswith(solid("".join(pieces(reply, style, *asked))))
            assert all(example.mask[len(prompt_of(example)) :])


@pytest.mark.parametrize("style", ["tokens", "text"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_the_history_says_whose_label_it_is(kind: str, style: Style) -> None:
    """Every label stands right before its turn's words, and none is said that is not asked for.

    A given emotion stands before client turns, a predicted one before replies; acts before both; strategies before replies.
    """
    for modes in COMBINATIONS:
        fields = replace(modes, style=style)
        chat = chat_of(kind, fields)
        history, reply = REPLIES[-1]
        text = solid(decoded(chat, chat.prompt_ids(history, 10_000, reply.labels)))
        count = 0
        for turn in history:
            if turn.speaker is Speaker.CLIENT:
                names = ["emotion"] * (fields.emotion == "given") + ["dialogue_act"] * (fields.dialogue_act != "none")
            else:
                shown = [name for name in ("dialogue_act", "strategy") if vars(fields)[name] == "given"]
                names = shown + [n for n in ("emotion", "dialogue_act", "strategy") if vars(fields)[n] == "predicted"]
            written = pieces(turn, style, *names)
            count += len(written)
            assert solid("".join(written) + turn.text) in text
        asked = pieces(reply, style, *(n for n in ("dialogue_act", "strategy") if vars(fields)[n] == "given"))
        opener = r"<\|\w+:" if style == "tokens" else r"\[(emotion|dialogue_act|strategy):"
        assert len(re.findall(opener, text)) == count + len(asked)


@pytest.mark.parametrize("style", ["tokens", "text"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_a_whole_dialogue_trains_each_label_in_its_generation_context(kind: str, style: Style) -> None:
    """With labels too one sequence holds all replies, and cut before any of them it is that reply's prompt."""
    for modes in (ALL_GIVEN, ALL_PREDICTED, FieldsConfig("given", "predicted", "given")):
        chat = chat_of(kind, replace(modes, style=style))
        (example,) = chat.dialogue(LABELLED, 10_000)
        runs = trained(chat, *example)
        assert len(runs) == len(REPLIES)
        for (history, reply), run in zip(REPLIES, runs, strict=True):
            single = chat.example(history, reply.text, reply.labels)
            assert example.token_ids[: len(single.token_ids)] == single.token_ids
            assert trained(chat, *single) == [run]


@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_a_label_is_one_token(kind: str) -> None:
    """In the style "tokens" each label is a token of its own, in `Fields.tokens`; in "text" no token is needed."""
    chat = chat_of(kind, ALL_PREDICTED)
    tokens = Fields(ALL_PREDICTED).tokens([LABELLED])
    assert len(tokens) == len(set(tokens)) == 1 + len(ACTS) + 5
    for token in tokens:
        assert len(chat.tokenizer(token, add_special_tokens=False)["input_ids"]) <= 2  # a leading blank at most
        assert chat.tokenizer.convert_ids_to_tokens(chat.tokenizer.convert_tokens_to_ids(token)) == token
    history, reply = REPLIES[0]
    example = chat.example(history, reply.text, reply.labels)
    ids = chat.tokenizer.convert_tokens_to_ids(pieces(reply, "tokens", "emotion", "dialogue_act", "strategy"))
    assert [token for token, on in zip(*example, strict=True) if on and token in ids] == ids
    assert Fields(replace(ALL_PREDICTED, style="text")).tokens([LABELLED]) == []
    assert label_words("<|emotion:very_sad|>") == "very sad"


def test_without_labels_nothing_is_written() -> None:
    """A corpus, a turn or a fixed prompt without labels is rendered as without fields."""
    for kind in ("own", "gpt2", "mistral", "chatml"):
        plain = Chat(chat_of(kind, ALL_PREDICTED).tokenizer, fields=FieldsConfig())
        for modes in (ALL_GIVEN, ALL_PREDICTED):
            chat = chat_of(kind, modes)
            assert chat.dialogue(HARD, 10_000) == plain.dialogue(HARD, 10_000)


@pytest.mark.parametrize("style", ["tokens", "text"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_fields_are_saved_with_the_tokenizer(kind: str, style: Style, tmp_path: Path) -> None:
    """A chat over the loaded tokenizer writes the labels that the model was trained with, unasked."""
    fields = FieldsConfig("predicted", "given", "predicted", style)
    before = chat_of(kind, fields)
    before.tokenizer.save_pretrained(tmp_path)
    after = Chat(AutoTokenizer.from_pretrained(tmp_path))
    assert after.fields.config == saved_fields(after.tokenizer) == fields
    assert after.dialogue(LABELLED, 10_000) == before.dialogue(LABELLED, 10_000)
    Chat(after.tokenizer, fields=FieldsConfig()).tokenizer.save_pretrained(tmp_path)
    assert Chat(AutoTokenizer.from_pretrained(tmp_path)).fields.config == FieldsConfig()


def test_the_tokenizer_given_keeps_its_own_fields() -> None:
    """Only the chat's copy remembers the fields."""
    tokenizer = KINDS["own"][0](["abc"])
    Chat(tokenizer, fields=ALL_GIVEN)
    assert saved_fields(tokenizer) == FieldsConfig()


@pytest.mark.parametrize("modes", [ALL_GIVEN, ALL_PREDICTED], ids=["given", "predicted"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_nobody_forges_a_label_token(kind: str, modes: FieldsConfig) -> None:
    """A label token in a client's or therapist's words is not read as one: the special ids are those of plain words."""
    chat = chat_of(kind, modes)
    forged = "<|emotion:sadness|><|dialogue_act:GC|>"
    special = set(chat.tokenizer.added_tokens_decoder)
    labels = {"emotion": "sadness", "dialogue_act": "OD", "strategy": "Plan-GT (b)"}
    plain, written = (
        chat.example((Turn(Speaker.CLIENT, f"{x} it {x} hurts{x}", labels),), f"{x} go {x} on", labels)
        for x in ("", forged)
    )
    assert [i for i in written.token_ids if i in special] == [i for i in plain.token_ids if i in special]


@pytest.mark.parametrize("written", ["[emotion: joy]", "[ Emotion :joy]", "[emotion:<|end|> joy]", "[[emotion: joy]]"])
def test_nobody_forges_a_label_in_words(written: str) -> None:
    """In the style "text" a bracket that would open a label is written as another; other brackets stay."""
    chat = chat_of("own", replace(ALL_PREDICTED, style="text"))
    labels = {"emotion": "sadness"}
    example = chat.example((Turn(Speaker.CLIENT, f"{written} [sigh] it hurts", labels),), f"{written} I see", labels)
    text = decoded(chat, example.token_ids).lower()
    assert re.findall(r"\[\s*emotion\s*:\s*\w+", text) == ["[emotion: sadness"]
    assert "[sigh]" in text
    (run,) = trained(chat, *example)
    assert read_labels(run)[0] == labels
    assert "joy" in read_labels(run)[1]
    unasked = chat_of("own", FieldsConfig(style="text"))
    assert written.replace("<|end|>", " ") in decoded(unasked, unasked.prompt_ids((client(written),), 99))


labels_of_a_turn = st.fixed_dictionaries(
    {},
    optional={
        name: st.text("abcXYZ-() ", min_size=1).map(str.strip).filter(bool)
        for name in vars(ALL_GIVEN)
        if name != "style"
    },
)


@given(labels=labels_of_a_turn, reply=st.text("ab[]<|>: \n").map(str.strip), style=st.sampled_from(["tokens", "text"]))
def test_reading_undoes_writing(labels: dict[str, str], reply: str, style: Style) -> None:
    """The labels and the reply come back from the text that the policy is trained to write."""
    written = Fields(replace(ALL_PREDICTED, style=style)).predicted(labels)
    assert read_labels(written + reply) == (labels, reply)


def test_only_labels_are_read() -> None:
    """A reply that opens with brackets of its own is left as it is, and so is one without labels."""
    for reply in ("[sigh: long] yes", "<|mood:low|> yes", " yes", "[emotion] yes", ""):
        assert read_labels(reply) == ({}, reply)


def test_an_emotion_is_the_clients() -> None:
    """A client turn's own emotion comes before the dialogue's; a reply is labelled with that of the turn it answers."""
    turns = (therapist("hello"), client("a"), therapist("b"), Turn(Speaker.CLIENT, "c", {"emotion": "joy"}))
    last = Turn(Speaker.THERAPIST, "d", {"emotion": "neutral", "strategy": "Other"})
    moods = [turn.labels.get("emotion") for turn in annotated(Dialogue("d", (*turns, last), {"emotion": "fear"}))]
    assert moods == ["fear", "fear", "fear", "joy", "joy"]
    own = annotated(Dialogue("d", (*turns, last)))
    assert [turn.labels.get("emotion") for turn in own] == [None, None, None, "joy", "joy"]
    assert own[-1].labels["strategy"] == "Other"
    assert annotated(HARD) == HARD.turns


@pytest.mark.parametrize("modes", [ALL_GIVEN, ALL_PREDICTED], ids=["given", "predicted"])
def test_every_label_written_has_its_token(modes: FieldsConfig) -> None:
    """`Fields.tokens` of dialogues holds every label that their rendering writes, wherever the corpus keeps its labels."""
    moved = (
        Turn(Speaker.THERAPIST, "hi", {"emotion": "neutral"}),
        Turn(Speaker.CLIENT, "a", {"emotion": "joy", "strategy": "stray"}),
        Turn(Speaker.THERAPIST, "b", {"emotion": "calm", "strategy": "Question", "dialogue_act": "IRQ"}),
    )
    dialogues = [Dialogue("d", moved, {"emotion": "fear"}), Dialogue("e", moved)]
    chat = chat_of("own", modes, dialogues)
    for dialogue in dialogues:
        (example,) = chat.dialogue(dialogue, 10_000)
        text = decoded(chat, example.token_ids)
        found = re.findall(r"<\|\w+:[^|]*\|>", text)
        assert found and set(found) <= set(Fields(modes).tokens(dialogues))
        special = [
            str(chat.tokenizer.decode([i])) for i in example.token_ids if i in chat.tokenizer.added_tokens_decoder
        ]
        assert [token for token in special if ":" in token] == found


LONG = Dialogue(
    "long/train/0",
    tuple(
        turn
        for k in range(12)
        for turn in (
            Turn(Speaker.CLIENT, f"client {k} " + "very " * (k % 4) + "sad", {"dialogue_act": ACTS[k % 9]}),
            Turn(
                Speaker.THERAPIST, f"reply {k} " + "so " * (k % 3), {"dialogue_act": ACTS[-k % 9], "strategy": "Other"}
            ),
        )
    ),
    {"emotion": "sadness"},
)


@pytest.mark.parametrize("modes", [FieldsConfig(), ALL_GIVEN, ALL_PREDICTED], ids=["none", "given", "predicted"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_the_window_keeps_as_many_turns_as_fit(kind: str, modes: FieldsConfig) -> None:
    """Before each reply stands the longest history, opening with the client, that fits in `context_tokens`, labels counted.

    Where not even the last client turn fits, it stands alone. Each reply is trained once.
    """
    chat = chat_of(kind, modes, (LONG,))
    turns = merged(annotated(LONG))
    exact = [len(chat.prompt_ids(turns[start:-1], 10_000, turns[-1].labels)) for start in (22, 18, 10, 0)]
    for window in (1, *exact, *(size - 1 for size in exact)):
        examples = chat.dialogue(LONG, 10_000, context_tokens=window)
        assert sum(len(trained(chat, *example)) for example in examples) == 12
        for index in range(1, len(turns), 2):
            reply = turns[index]
            rendered = [chat.example(turns[start:index], reply.text, reply.labels) for start in range(0, index, 2)]
            expected = next((e for e in rendered if len(prompt_of(e)) <= window), rendered[-1])
            size, asked = len(expected.token_ids), len(prompt_of(expected))
            assert any(
                example.token_ids[:size] == expected.token_ids and all(example.mask[asked:size]) for example in examples
            )


def test_equal_exchanges_are_trained_as_often_as_they_happen() -> None:
    """A client who says the same twice and is answered the same gives two replies to train, with a window or a limit."""
    turns = (client("yes"), therapist("go on")) * 4
    chat = chat_of("own", FieldsConfig(), (LABELLED,))
    one = len(chat.example(turns[:1], "go on").token_ids)
    for limit, window in ((10_000, one), (one, 0), (2 * one, one)):
        examples = chat.dialogue(Dialogue("d", turns), limit, context_tokens=window)
        assert sum(len(trained(chat, *example)) for example in examples) == 4


WORDS = [f"w{k}" for k in range(80)]


@pytest.mark.parametrize("modes", [FieldsConfig(), ALL_GIVEN, ALL_PREDICTED], ids=["none", "given", "predicted"])
@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_a_long_client_turn_loses_its_beginning(kind: str, modes: FieldsConfig) -> None:
    """The reply to it is trained whole, its labels are said, and no more of the client's words is lost than must be."""
    labels = {"emotion": "sadness", "dialogue_act": "OD", "strategy": "Plan-GT (b)"}
    turns = (client("before"), therapist("yes"), Turn(Speaker.CLIENT, " ".join(WORDS), labels))
    dialogue = Dialogue("d", (*turns, Turn(Speaker.THERAPIST, "I see. Go on?", labels)), {"emotion": "sadness"})
    chat = chat_of(kind, modes)
    single = chat.example(annotated(dialogue)[2:3], "I see. Go on?", labels)
    (expected,) = trained(chat, *single)
    reply = sum(single.mask)
    for limit in range(2 * reply + 30, len(single.token_ids)):
        *_, example = chat.dialogue(dialogue, limit)
        assert trained(chat, *example) == [expected]
        prompt = decoded(chat, prompt_of(example))
        kept = re.findall(r"w\d+", prompt)
        assert kept and WORDS[0] not in kept and kept[1:] == WORDS[len(WORDS) - len(kept) + 1 :]
        assert limit - 6 <= len(example.token_ids) <= limit
        assert ("<|emotion:sadness|>" in prompt) is (modes.emotion == "given")


@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_a_long_reply_to_a_long_turn_has_half(kind: str) -> None:
    """Where both are too long, the client's end and the reply's beginning share the sequence."""
    chat = chat_of(kind, FieldsConfig())
    asked, said = " ".join(WORDS), " ".join(f"r{k}" for k in range(80))
    for limit in range(60, 140, 7):
        (example,) = chat.dialogue(Dialogue("d", (client(asked), therapist(said))), limit)
        prompt = prompt_of(example)
        assert limit // 2 - 6 <= len(prompt) <= limit // 2 and len(example.token_ids) == limit
        assert re.findall(r"w\d+", decoded(chat, prompt))[-1] == "w79"
        assert said.startswith(decoded(chat, example.token_ids[len(prompt) :]).strip()[:12])


@pytest.mark.parametrize("kind", ["own", "gpt2", "mistral", "chatml"])
def test_a_cut_through_a_letter_costs_no_reply(kind: str) -> None:
    """Letters of several tokens may be cut in two; the sequence still fits and the reply is whole."""
    chat = chat_of(kind, FieldsConfig())
    dialogue = Dialogue("d", (client("\U0001f614\u0416\u00e9\u4f60 " * 12), therapist("I see")))
    whole = len(chat.example(dialogue.turns[:1], "I see").token_ids)
    for limit in range(whole // 2, whole):
        (example,) = chat.dialogue(dialogue, limit)
        assert trained(chat, *example) == ["I see"]
        assert len(example.token_ids) <= limit and "\ufffd" not in decoded(chat, example.token_ids)


def splits(**labels: Any) -> dict[str, list[Dialogue]]:
    """One dialogue a split, whose reply has the dialogue act, the strategy or the emotion given for it."""

    def dialogue(split: str) -> Dialogue:
        of_turn = {name: of[split] for name, of in labels.items() if name != "emotion"}
        of_dialogue = {"emotion": labels["emotion"][split]} if "emotion" in labels else {}
        return Dialogue(split, (client("a"), Turn(Speaker.THERAPIST, "b", of_turn)), of_dialogue)

    return {split: [dialogue(split)] for split in ("train", "valid", "test")}


@pytest.mark.parametrize("mode", ["given", "predicted"])
@pytest.mark.parametrize("name", ["emotion", "dialogue_act", "strategy"])
def test_labels_that_cannot_be_learned_are_refused(name: str, mode: Literal["given", "predicted"]) -> None:
    """In one line that names the setting: labels that the corpus lacks, and labels that only another split has."""
    config = FieldsConfig(**{name: mode})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"fields\.{name} needs a corpus whose turns have the label '{name}'"):
        check_fields(config, splits())
    for odd in ("valid", "test"):
        uneven = {name: {"train": "old", "valid": "old", "test": "old"} | {odd: "new"}}
        with pytest.raises(ValueError, match=rf"fields\.{name} must have every label in the train split, new is only"):
            check_fields(config, splits(**uneven))
        check_fields(FieldsConfig(), splits(**uneven))
    check_fields(config, splits(**{name: dict.fromkeys(("train", "valid", "test"), "old")}))


def test_acts_outside_the_twelve_are_refused() -> None:
    """A typo that the loader kept as published is named, in whatever split it is; other corpora have acts of their own."""
    config = FieldsConfig(dialogue_act="given")
    acts = {"train": "GC", "valid": "GC", "test": "gcc"}
    with pytest.raises(ValueError, match=r"fields\.dialogue_act takes the acts ID, .*, GC, the corpus also has gcc;"):
        check_fields(config, splits(dialogue_act=acts), SPELLINGS)
    own = dict.fromkeys(acts, "gcc")
    with pytest.raises(ValueError, match="also has gcc"):
        check_fields(config, splits(dialogue_act=own), SPELLINGS)
    check_fields(config, splits(dialogue_act=own))


def test_the_shipped_samples_have_their_labels() -> None:
    """Strategies of the dialogues, acts of the sessions: both fields can be used without another download.

    So can emotions, under a split that leaves each of them in train; the default one is refused with the emotion's name.
    """
    check_fields(FieldsConfig(strategy="given"), load(CorpusConfig()).splits, SPELLINGS)
    with pytest.raises(ValueError, match=r"fields\.emotion must have every label in the train split, pain is only"):
        check_fields(FieldsConfig("predicted"), load(CorpusConfig()).splits, SPELLINGS)
    check_fields(FieldsConfig("predicted"), load(CorpusConfig(split_seed=1)).splits, SPELLINGS)
    sessions = load(CorpusConfig(format="hope", path=str(SAMPLE / "hope")))
    check_fields(FieldsConfig(dialogue_act="predicted"), sessions.splits, SPELLINGS)
