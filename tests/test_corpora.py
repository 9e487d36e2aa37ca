"""Loaders: published files -> dialogues, splits that share nothing, errors that name the row."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rollout.config import CorpusConfig
from rollout.corpora import SAMPLE, Corpus, CorpusError, load
from rollout.corpora.hope import affirms, dialogue_act
from rollout.types import Dialogue, Speaker

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data (ESConv, HOPE)")


def everything(corpus: Corpus) -> list[Dialogue]:
    return [dialogue for dialogues in corpus.splits.values() for dialogue in dialogues]


def esconv_row(number: int) -> dict[str, Any]:
    return {
        "emotion_type": "sadness",
        "problem_type": "job crisis",
        "situation": f"situation {number}",
        "survey_score": {"seeker": {"empathy": "4"}, "supporter": {}},
        "dialog": [
            {"speaker": "seeker", "annotation": {}, "content": f"hello {number}\n"},
            {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": " what happened? "},
            {"speaker": "seeker", "annotation": {"feedback": "5"}, "content": "a lot"},
        ],
    }


def write_esconv(folder: Path, rows: Any) -> CorpusConfig:
    (folder / "ESConv.json").write_text(json.dumps(rows), encoding="utf-8")
    return CorpusConfig("esconv", str(folder))


def write_jsonl(file: Path, count: int, prefix: str = "d") -> CorpusConfig:
    lines = [
        {
            "id": f"{prefix}{n}",
            "emotion": "grief",
            "turns": [{"speaker": "client", "text": f"{prefix} {n}", "stars": 3}],
        }
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return CorpusConfig("jsonl", str(file))


def write_session(file: Path, rows: list[list[str]], column: str = "Dialog_Act") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["ID", "Type", "Utterance", column], *rows])


@needs_shared
def test_esconv_has_the_official_split() -> None:
    """Each split holds, in order, the dialogues that the authors' own code puts there; the generator is untouched."""
    rows = json.loads((SHARED / "esconv" / "ESConv.json").read_text(encoding="utf-8"))
    random.seed(13)
    random.shuffle(rows)
    official = {"valid": rows[:195], "test": rows[195:390], "train": rows[390:]}
    before = random.getstate()
    corpus = load(CorpusConfig("esconv", str(SHARED / "esconv")))
    assert random.getstate() == before
    assert {split: len(dialogues) for split, dialogues in corpus.splits.items()} == {
        "train": 910,
        "valid": 195,
        "test": 195,
    }
    for split, expected in official.items():
        for index, (dialogue, row) in enumerate(zip(corpus.splits[split], expected, strict=True)):
            assert dialogue.id == f"esconv/{split}/{index:04d}"
            assert [turn.text for turn in dialogue.turns] == [turn["content"].strip() for turn in row["dialog"]]
            assert dialogue.labels["emotion"] == row["emotion_type"]


@needs_shared
def test_every_published_star_is_kept_on_the_seeker_turn() -> None:
    """The corpus carries the 7,681 published ratings, all of them on client turns, with the published values."""
    turns = [t for d in everything(load(CorpusConfig("esconv", str(SHARED / "esconv")))) for t in d.turns]
    rated = [turn for turn in turns if "stars" in turn.labels]
    assert len(rated) == 7681
    assert {turn.speaker for turn in rated} == {Speaker.CLIENT}
    assert Counter(turn.labels["stars"] for turn in rated)["5"] == 3993


@needs_shared
def test_hope_excerpt_is_read_whole() -> None:
    """All 479 utterances of the eight sessions are there, each with one of the twelve acts; every `yna` is resolved."""
    dialogues = everything(load(CorpusConfig("hope", str(SHARED / "hope"))))
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    assert (len(dialogues), len(turns)) == (8, 479)
    answers = [turn.labels["dialogue_act"] for turn in turns if turn.labels["dialogue_act_raw"] == "yna"]
    assert Counter(answers) == {"PA": 17, "NA": 14}
    assert {turn.labels["dialogue_act"] for turn in turns} <= {"ID", "IRQ", "GC", "YNQ", "PA", "NA", "ACK", "GT"}


def test_the_two_formats_of_the_sample_say_the_same() -> None:
    """Read as ESConv and as HOPE, the sample gives the same turns, speakers and canonical dialogue acts."""

    def content(corpus: Corpus) -> set[tuple[tuple[str, str, str], ...]]:
        return {
            tuple((turn.speaker, turn.text, turn.labels["dialogue_act"]) for turn in dialogue.turns)
            for dialogue in everything(corpus)
        }

    assert content(load(CorpusConfig())) == content(load(CorpusConfig("hope", str(SAMPLE / "hope"))))


@pytest.mark.parametrize("config", [CorpusConfig(), CorpusConfig("hope", str(SAMPLE / "hope"))], ids=["sample", "hope"])
@pytest.mark.parametrize(("seed", "valid", "test"), [(13, 0.15, 0.15), (7, 0.3, 0.1)])
def test_splits_divide_the_corpus(config: CorpusConfig, seed: int, valid: float, test: float) -> None:
    """Every dialogue is in exactly one split, sizes follow the shares, ids are unique and name the split."""
    corpus = load(CorpusConfig(config.format, config.path, seed, valid, test))
    words = [tuple(turn.text for turn in dialogue.turns) for dialogue in everything(corpus)]
    assert len(set(words)) == len(words) == 64
    assert (len(corpus.valid), len(corpus.test)) == (int(valid * 64), int(test * 64))
    assert len({dialogue.id for dialogue in everything(corpus)}) == 64
    for split, dialogues in corpus.splits.items():
        assert all(dialogue.id.startswith(f"{config.format}/{split}/") for dialogue in dialogues)


@pytest.mark.parametrize(("form", "path"), [("sample", ""), ("hope", str(SAMPLE / "hope"))])
def test_another_seed_gives_another_split(form: Any, path: str) -> None:
    """Equal seeds split equally, different seeds do not."""
    splits = [{d.turns[0].text for d in load(CorpusConfig(form, path, seed)).test} for seed in (13, 13, 14)]
    assert splits[0] == splits[1] != splits[2]


def test_a_new_dialogue_moves_few_others(tmp_path: Path) -> None:
    """Of 40 hashed dialogues at most two change their split when one is added: one at each border."""

    def homes(count: int) -> dict[str, str]:
        return {d.turns[0].text: d.id.split("/")[1] for d in everything(load(write_jsonl(tmp_path / "a.jsonl", count)))}

    small = homes(40)
    large = homes(41)
    assert len(large) == 41
    assert sum(large[text] != split for text, split in small.items()) <= 2


def test_provenance_says_what_was_read() -> None:
    """File hashes, counts and licence in the record are those of the files and of the corpus."""
    corpus = load(CorpusConfig("hope", str(SAMPLE / "hope")))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (SAMPLE / "hope").glob("*.csv")}
    assert corpus.provenance["files"] == files
    assert corpus.provenance["dialogues"] == {split: len(members) for split, members in corpus.splits.items()}
    assert load(CorpusConfig()).provenance["licence"] == "Apache-2.0 (written for this project)"
    assert json.loads(json.dumps(corpus.provenance)) == corpus.provenance


def test_esconv_labels_come_through(tmp_path: Path) -> None:
    """Contents are stripped; emotion, situation, survey, strategy and stars stand where they were published."""
    dialogue = load(write_esconv(tmp_path, [esconv_row(n) for n in range(10)])).train[0]
    assert dialogue.labels["situation"].split()[1] == dialogue.turns[0].text.split()[1]
    assert (dialogue.labels["survey_empathy"], dialogue.labels["problem"]) == ("4", "job crisis")
    assert [turn.text for turn in dialogue.turns[1:]] == ["what happened?", "a lot"]
    assert [dict(turn.labels) for turn in dialogue.turns] == [{}, {"strategy": "Question"}, {"stars": "5"}]


def set_speaker(row: dict[str, Any]) -> None:
    row["dialog"][2]["speaker"] = "x"


def set_star(row: dict[str, Any]) -> None:
    row["dialog"][2]["annotation"]["feedback"] = "6"


def empty_content(row: dict[str, Any]) -> None:
    row["dialog"][1]["content"] = "\n"


def drop_turns(row: dict[str, Any]) -> None:
    row["dialog"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_speaker, r"/ESConv.json dialogue 3, turn 3: 'speaker' must be seeker or supporter, is 'x'; fix the row"),
        (set_star, r"/ESConv.json dialogue 3, turn 3: 'annotation.feedback' must be a number from 1 to 5, is '6'"),
        (empty_content, r"/ESConv.json dialogue 3, turn 2: 'content' must be a text"),
        (drop_turns, r"/ESConv.json dialogue 3: 'dialog' must be a list of turns"),
    ],
)
def test_esconv_errors_name_the_row(tmp_path: Path, damage: Any, message: str) -> None:
    """A damaged row is refused by file, dialogue and turn, counted from 1."""
    rows = [esconv_row(n) for n in range(10)]
    damage(rows[2])
    with pytest.raises(CorpusError, match=message):
        load(write_esconv(tmp_path, rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["5_1", "X", "hm", "gc"], r"/5.csv line 3: 'Type' must be T or P, is 'X'"),
        (["5_1", "P", " ", "gc"], r"/5.csv line 3: 'Utterance' must be a text, is empty"),
        (["5_1", "P"], r"/5.csv line 3: must have 4 cells, has 2"),
    ],
)
def test_hope_errors_name_the_line(tmp_path: Path, row: list[str], message: str) -> None:
    """A damaged line is refused by file and line, the header being line 1."""
    write_session(tmp_path / "5.csv", [["5_0", "T", "hello", "gt"], row])
    with pytest.raises(CorpusError, match=message):
        load(CorpusConfig("hope", str(tmp_path)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"/own.jsonl line 3: must be JSON"),
        (
            '{"id": "d0", "turns": [{"speaker": "client", "text": "x"}]}',
            r"line 3: 'id' must be unique, 'd0' is also .*1",
        ),
        ('{"id": "q", "turns": [{"speaker": "nurse", "text": "x"}]}', r"line 3, turn 1: 'speaker' must be client or"),
        ('{"id": "q", "turns": [{"speaker": "client", "text": ""}]}', r"line 3, turn 1: 'text' must be a text"),
        ('{"id": "q", "turns": [], "emotion": "fear"}', r"line 3: 'turns' must be a list of turns"),
        (
            '{"id": "q", "turns": [{"speaker": "client", "text": "x", "k": []}]}',
            r"label 'k' must be a text or a number",
        ),
        ('{"turns": []}', r"line 3: must be an object with an 'id'"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    """A damaged line is refused by file and line."""
    config = write_jsonl(tmp_path / "own.jsonl", 2)
    with (tmp_path / "own.jsonl").open("a") as stream:
        stream.write("\n" + line)
    with pytest.raises(CorpusError, match=message):
        load(config)


def test_hope_quirks_of_the_full_release(tmp_path: Path) -> None:
    """Both column spellings, "Copy of", split folders, repeated headers, several labels and typos are understood."""
    write_session(
        tmp_path / "Train" / "Copy of 12.csv", [["12_0", "T", "hi", "gc, irq"], ["ID", "Type", "Utterance", ""]]
    )
    write_session(tmp_path / "Train" / "13.csv", [["13_0", "p", "all good", "acak"]], column="Dialogue_Act")
    write_session(tmp_path / "Validation" / "14.csv", [["14_0", "T", "well", "COMP"], ["", "", "", ""]])
    write_session(tmp_path / "Test" / "15.csv", [["15_0", "P", "no, thanks", "yna"]])
    corpus = load(CorpusConfig("hope", str(tmp_path)))
    assert {dialogue.id for dialogue in everything(corpus)} == {
        "hope/train/12",
        "hope/train/13",
        "hope/valid/14",
        "hope/test/15",
    }
    labels = {d.id[-2:]: [dict(turn.labels) for turn in d.turns] for d in everything(corpus)}
    assert labels == {
        "12": [{"dialogue_act": "GC", "dialogue_act_raw": "gc, irq"}],
        "13": [{"dialogue_act": "ACK", "dialogue_act_raw": "acak"}],
        "14": [{"dialogue_act": "CD", "dialogue_act_raw": "COMP"}],
        "15": [{"dialogue_act": "NA", "dialogue_act_raw": "yna"}],
    }


def test_unknown_acts_are_kept_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A code outside the twelve stays as it is, and the log counts it."""
    for session in range(7):
        write_session(tmp_path / f"{session}.csv", [["0", "P", f"hm {session}", "zz"], ["1", "T", "I see", "gc"]])
    with caplog.at_level(logging.WARNING):
        corpus = load(CorpusConfig("hope", str(tmp_path)))
    assert [turn.labels["dialogue_act"] for turn in corpus.train[0].turns] == ["zz", "GC"]
    assert "{'zz': 7}" in caplog.text


def test_hope_sessions_come_once(tmp_path: Path) -> None:
    """A session and its "Copy of" in two folders would leak from one split into another: refused by both names."""
    write_session(tmp_path / "Train" / "12.csv", [["12_0", "T", "hi", "gt"]])
    write_session(tmp_path / "Test" / "Copy of 12.csv", [["12_0", "T", "hi", "gt"]])
    with pytest.raises(CorpusError, match=r"Test/Copy of 12.csv and Train/12.csv are both 12; remove one"):
        load(CorpusConfig("hope", str(tmp_path)))


def test_hope_files_outside_the_split_folders_are_refused(tmp_path: Path) -> None:
    """A corpus is split by its folders or by us, not half and half."""
    write_session(tmp_path / "Train" / "12.csv", [["12_0", "T", "hi", "gt"]])
    write_session(tmp_path / "13.csv", [["13_0", "T", "ho", "gt"]])
    with pytest.raises(CorpusError, match="1 of 2 lie outside"):
        load(CorpusConfig("hope", str(tmp_path)))


@pytest.mark.parametrize(
    ("answer", "polarity"),
    [
        ("Yeah, if I fail it, then I'm not going to get it.", True),
        ("No, I mean, I still try. Yes.", False),
        ("They're not married.", False),
        ("I don\u2019t think so", False),
        ("Um, once I went out. But I could not stay.", True),
        ("I know that one", True),
        ("Nothing", False),
    ],
)
def test_yes_no_answers_are_resolved_by_polarity(answer: str, polarity: bool) -> None:
    """The first affirming or negating word of the first sentence decides; a plain statement affirms."""
    assert affirms(answer) is polarity
    assert dialogue_act("yna", answer) == ("PA" if polarity else "NA")


def test_jsonl_keeps_labels_and_given_splits(tmp_path: Path) -> None:
    """Extra keys become labels; a folder of train, valid and test files keeps its splits."""
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        write_jsonl(tmp_path / f"{split}.jsonl", count, prefix=split)
    corpus = load(CorpusConfig("jsonl", str(tmp_path)))
    assert [[d.id.split("/")[-1] for d in members] for members in corpus.splits.values()] == [
        ["train0", "train1", "train2"],
        ["valid0"],
        ["test0", "test1"],
    ]
    assert corpus.test[1].labels == {"emotion": "grief"}
    assert corpus.test[1].turns[0].labels == {"stars": "3"}


def test_a_dialogue_in_two_splits_is_refused(tmp_path: Path) -> None:
    """The same words under two ids may not be in train and in test."""
    turns = [{"speaker": "client", "text": "the same"}]
    for split in ("train", "valid", "test"):
        text = turns if split != "valid" else [{"speaker": "client", "text": "another"}]
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"id": split, "turns": text}))
    with pytest.raises(CorpusError, match=r"train/train and .*test/test are word for word the same; remove one"):
        load(CorpusConfig("jsonl", str(tmp_path)))


@pytest.mark.parametrize("form", ["esconv", "hope", "jsonl"])
def test_a_missing_corpus_is_a_missing_file(tmp_path: Path, form: Any) -> None:
    """Where nothing is, the error is FileNotFoundError, and it names the knob."""
    with pytest.raises(FileNotFoundError, match=r"corpus\.path must be"):
        load(CorpusConfig(form, str(tmp_path / "nowhere")))


def test_empty_corpora_and_splits_are_refused(tmp_path: Path) -> None:
    """No dialogue, a session without utterances, too few dialogues for three splits: one clear error each."""
    with pytest.raises(CorpusError, match="must be a list of dialogues, holds none"):
        load(write_esconv(tmp_path, []))
    with pytest.raises(CorpusError, match="the valid split must hold a dialogue"):
        load(write_esconv(tmp_path, [esconv_row(n) for n in range(3)]))
    with pytest.raises(CorpusError, match="must hold a dialogue, holds none"):
        load(write_jsonl(tmp_path / "none.jsonl", 0))
    write_session(tmp_path / "hope" / "1.csv", [])
    with pytest.raises(CorpusError, match="must hold an utterance, holds none"):
        load(CorpusConfig("hope", str(tmp_path / "hope")))


def test_files_in_other_encodings_are_refused(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is an error that names the file, not a crash or a question mark."""
    (tmp_path / "own.jsonl").write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(CorpusError, match=r"own\.jsonl must be UTF-8, byte 11 is not"):
        load(CorpusConfig("jsonl", str(tmp_path / "own.jsonl")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "esconv"}, r"corpus\.path must name a local file or folder"),
        ({"path": "x"}, r"corpus\.path must be empty for the shipped sample, is 'x'"),
        ({"valid_share": 0.0}, r"corpus\.valid_share must lie between 0 and 1"),
        ({"test_share": 1.5}, r"corpus\.test_share .* is 1.5"),
        ({"valid_share": 0.5, "test_share": 0.5}, r"corpus\.valid_share \+ corpus\.test_share must stay below 1"),
    ],
)
def test_corpus_settings_name_the_knob(settings: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused before anything is read, by its dotted name."""
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**settings)
