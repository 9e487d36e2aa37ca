"""ESConv (Liu et al. 2021, arXiv:2106.01144): emotional-support dialogues between crowd workers, rated by the seekers.

One JSON list of dialogues as published. Labels of a dialogue: `emotion`, `problem`, `situation`, `experience` and
`topic` (where the file has them) and the seeker's survey, `survey_empathy`, `survey_relevance`,
`survey_initial_emotion_intensity`, `survey_final_emotion_intensity` (1-5; empathy and relevance are missing in 150
dialogues). Labels of a turn: `strategy` (supporter), `stars` (seeker, 1-5), which rates the supporter's turns *before*
it, and `dialogue_act` in HOPE's upper-case codes (where somebody added a `dialog_act` to the annotation).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, assemble, cut, fingerprints, place, read_text, shuffled
from rollout.types import Dialogue, Speaker, Turn

SPEAKERS = {"seeker": Speaker.CLIENT, "supporter": Speaker.THERAPIST}
DIALOGUE_LABELS = {
    "emotion_type": "emotion",
    "problem_type": "problem",
    "situation": "situation",
    "experience_type": "experience",
    "topic": "topic",
}
TURN_LABELS = {
    "strategy": "strategy",
    "feedback": "stars",
    "dialog_act": "dialogue_act",
    "dialogue_act": "dialogue_act",
}


def load_esconv(
    path: Path, config: CorpusConfig, *, name: str = "esconv", licence: str = "CC BY-NC 4.0 (ESConv, its authors)"
) -> Corpus:
    """Read the published file (or the folder that holds `ESConv.json`) and split it as its authors do.

    The split: shuffle the list with Python's generator seeded by `config.split_seed` (13 is the official seed), then
    valid, test, train. Ids count within a split: `esconv/train/0412`. Raises `FileNotFoundError` and `CorpusError`.
    """
    file = path / "ESConv.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"corpus.path must be ESConv.json or its folder, there is no file {file}; correct it")
    dialogues = [_dialogue(row, f"{place(file)} dialogue {number}") for number, row in enumerate(_rows(file), start=1)]
    splits = {
        split: [Dialogue(f"{index:04d}", dialogue.turns, dialogue.labels) for index, dialogue in enumerate(members)]
        for split, members in cut(shuffled(dialogues, config.split_seed), config).items()
    }
    return assemble(
        name,
        splits,
        source="esconv",
        files=fingerprints([file], file.parent),
        rule=f"random.seed({config.split_seed}) shuffle: valid {config.valid_share}, test {config.test_share}, train",
        licence=licence,
    )


def _rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{place(file)} must be JSON, line {error.lineno} is not ({error.msg}); fetch it again"
        ) from error
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{place(file)} must be a list of dialogues, holds none; fetch the published file")
    return rows


def _dialogue(row: Any, where: str) -> Dialogue:
    if not isinstance(row, dict) or not isinstance(row.get("dialog"), list) or not row["dialog"]:
        raise CorpusError(f"{where}: 'dialog' must be a list of turns, is missing or empty; fix the row or remove it")
    labels = {label: _text(row[key], where, key) for key, label in DIALOGUE_LABELS.items() if key in row}
    survey = row.get("survey_score", {})
    if not isinstance(survey, dict) or not isinstance(survey.get("seeker", {}), dict):
        raise CorpusError(f"{where}: 'survey_score' must be an object, is {survey!r}; fix the row or remove it")
    for key, score in survey.get("seeker", {}).items():
        labels[f"survey_{key}"] = _score(score, where, f"survey_score.seeker.{key}")
    turns = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(row["dialog"], start=1))
    return Dialogue("", turns, labels)


def _turn(row: Any, where: str) -> Turn:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: must be an object, is {row!r}; fix the row or remove it")
    speaker = row.get("speaker")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise CorpusError(f"{where}: 'speaker' must be seeker or supporter, is {speaker!r}; fix the row or remove it")
    annotation = row.get("annotation", {})
    if not isinstance(annotation, dict):
        raise CorpusError(f"{where}: 'annotation' must be an object, is {annotation!r}; fix the row or remove it")
    labels = {
        label: (_score if label == "stars" else _text)(annotation[key], where, f"annotation.{key}")
        for key, label in TURN_LABELS.items()
        if key in annotation
    }
    if act := labels.get("dialogue_act"):
        labels["dialogue_act"] = act.upper()
    return Turn(SPEAKERS[speaker], _text(row.get("content"), where, "content"), labels)


def _text(entry: Any, where: str, key: str) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise CorpusError(f"{where}: {key!r} must be a text, is {entry!r}; fix the row or remove it")
    return entry.strip()


def _score(entry: Any, where: str, key: str) -> str:
    if str(entry) not in {"1", "2", "3", "4", "5"}:
        raise CorpusError(f"{where}: {key!r} must be a number from 1 to 5, is {entry!r}; fix the row or remove it")
    return str(entry)
