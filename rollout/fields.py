"""Labels read and written with the turns: emotion, dialogue act, strategy (the input restructuring of the studies).

    given       the label stands before the text; of a reply it belongs to the prompt
    predicted   the policy writes the label, then the reply: it is trained like the reply's own tokens

An emotion is the client's: given, it stands before each client turn; predicted, before each reply to it. A strategy stands
before the therapist's turns, a dialogue act before every turn that has one (predicted: the client's acts are given).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rollout.config import FieldsConfig
from rollout.types import Dialogue, Speaker, Turn

NAMES = ("emotion", "dialogue_act", "strategy")
SAVED_AS = "attune_fields"  # in tokenizer_config.json, so that a model tells how it wants to be asked
_PIECE = {"tokens": "<|{name}:{label}|>", "text": "[{name}: {label}] "}
_FORGED = re.compile(rf"\[(?=\s*(?:{'|'.join(NAMES)})\s*:)", re.IGNORECASE)
_WRITTEN = re.compile(r"\s*(?:<\|(\w+):([^|>]+)\|>|\[(\w+): ([^\]]+)\])")


class Fields:
    """Renders the labels that `config` asks for."""

    def __init__(self, config: FieldsConfig) -> None:
        self.config = config
        self._modes = {name: mode for name, mode in asdict(config).items() if name in NAMES and mode != "none"}

    @property
    def predictions(self) -> tuple[str, ...]:
        """The labels that the policy writes before its reply."""
        return tuple(name for name in NAMES if self._modes.get(name) == "predicted")

    def of_turn(self, turn: Turn) -> str:
        """What stands before a turn of the history."""
        if turn.speaker is Speaker.THERAPIST:
            return self.given(turn.labels) + self.predicted(turn.labels)
        modes = {"emotion": ("given",), "dialogue_act": ("given", "predicted")}
        return self._write(turn.labels, [name for name in modes if self._modes.get(name) in modes[name]])

    def given(self, labels: Mapping[str, str]) -> str:
        """What the prompt says of the reply that it asks for."""
        return self._write(labels, [n for n in ("dialogue_act", "strategy") if self._modes.get(n) == "given"])

    def predicted(self, labels: Mapping[str, str]) -> str:
        """What the policy writes before its reply."""
        return self._write(labels, [name for name in NAMES if self._modes.get(name) == "predicted"])

    def unlabelled(self, text: str) -> str:
        """A turn's text in which nothing reads like a label of the style "text" (those of "tokens" are special tokens)."""
        return _FORGED.sub("(", text) if self._modes and self.config.style == "text" else text

    def labels(self, dialogues: Iterable[Dialogue]) -> dict[str, set[str]]:
        """The labels in use, by field."""
        found: dict[str, set[str]] = {name: set() for name in self._modes}
        for dialogue in dialogues:
            for turn in annotated(dialogue):
                for name in found:
                    if self._concerns(name, turn) and turn.labels.get(name):
                        found[name].add(turn.labels[name])
        return found

    def tokens(self, dialogues: Iterable[Dialogue]) -> list[str]:
        """The special tokens that these dialogues' labels need; none in the style "text"."""
        if self.config.style == "text":
            return []
        found = self.labels(dialogues)
        return [self._piece(name, label) for name in NAMES for label in sorted(found.get(name, ()))]

    def _concerns(self, name: str, turn: Turn) -> bool:
        return name != "strategy" or turn.speaker is Speaker.THERAPIST

    def _write(self, labels: Mapping[str, str], names: Iterable[str]) -> str:
        return "".join(self._piece(name, labels[name]) for name in names if labels.get(name))

    def _piece(self, name: str, label: str) -> str:
        return _PIECE[self.config.style].format(name=name, label=re.sub(r"[|<>\[\]]", " ", label).strip())


def annotated(dialogue: Dialogue) -> tuple[Turn, ...]:
    """The dialogue's turns, labelled with the client's `emotion`: a client turn's own, else the dialogue's; on a therapist's
    turn, that of the client turn before it."""
    mood = overall = dialogue.labels.get("emotion", "")
    turns = []
    for turn in dialogue.turns:
        if turn.speaker is Speaker.CLIENT:
            mood = turn.labels.get("emotion") or overall
        rest = {name: label for name, label in turn.labels.items() if name != "emotion"}
        turns.append(Turn(turn.speaker, turn.text, rest | ({"emotion": mood} if mood else {})))
    return tuple(turns)


def read_labels(text: str) -> tuple[dict[str, str], str]:
    """The labels that a policy wrote before its reply, and the reply."""
    labels: dict[str, str] = {}
    while match := _WRITTEN.match(text):
        name, label = (match[1], match[2]) if match[1] else (match[3], match[4])
        if name not in NAMES:
            break
        labels[name], text = label, text[match.end() :]
    return labels, text.lstrip() if labels else text


def label_words(token: str) -> str:
    """What a label token says, in words: `<|strategy:Self-disclosure|>` -> `Self-disclosure`."""
    match = _WRITTEN.match(token)
    assert match is not None, token
    return match[2].replace("_", " ")


def check_fields(config: FieldsConfig, splits: Mapping[str, Iterable[Dialogue]], acts: Iterable[str] = ()) -> None:
    """Raise ValueError when a field has no labels in the train split, or another split has labels that it has not.

    With `acts`, dialogue acts must be among them.
    """
    fields = Fields(config)
    by_split = {split: fields.labels(dialogues) for split, dialogues in splits.items()}
    for name, known in by_split["train"].items():
        if not known:
            raise ValueError(
                f"fields.{name} needs a corpus whose turns have the label {name!r}, this one's train split has none; set "
                f"fields.{name} = none"
            )
        everywhere = set().union(*(found[name] for found in by_split.values()))
        if name == "dialogue_act" and acts and (strange := sorted(everywhere - set(acts))):
            raise ValueError(
                f"fields.dialogue_act takes the acts {', '.join(acts)}, the corpus also has {', '.join(strange)}; correct "
                "those cells, or set fields.dialogue_act = none"
            )
        if unseen := sorted(everywhere - known):
            raise ValueError(
                f"fields.{name} must have every label in the train split, {', '.join(unseen)} is only in others; change "
                f"the split, or set fields.{name} = none"
            )


def saved_fields(tokenizer: Any) -> FieldsConfig:
    """The fields that a model was trained with, from its tokenizer."""
    return FieldsConfig(**tokenizer.init_kwargs.get(SAVED_AS, {}))


def install_fields(tokenizer: Any, config: FieldsConfig) -> None:
    """Have `tokenizer` remember the fields when it is saved."""
    if config == FieldsConfig():
        tokenizer.init_kwargs.pop(SAVED_AS, None)
    else:
        tokenizer.init_kwargs[SAVED_AS] = asdict(config)
