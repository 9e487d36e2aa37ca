"""One row schema in three wrappings: what JSON Lines, Parquet and `datasets` say of the same dialogues is the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout.config import CorpusConfig
from rollout.corpora import Corpus, CorpusError, load
from rollout.types import Dialogue, Speaker, Turn

Form = Literal["jsonl", "parquet", "hub"]
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test asks the hub or touches the user's cache; the cache that stands in."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def rows(count: int, prefix: str = "d") -> Rows:
    """Dialogues with labels of both kinds, every other one without."""
    return [
        {
            "id": f"{prefix}{n}",
            "emotion": "grief" if n % 2 else None,
            "age": n,
            "turns": [
                {"speaker": "client", "text": f" {prefix} {n} ", "stars": 3 if n % 2 else None},
                {"speaker": "therapist", "text": "I see.", "stars": None},
            ],
        }
        for n in range(count)
    ]


def without_nulls(entry: Any) -> Any:
    if isinstance(entry, list):
        return [without_nulls(one) for one in entry]
    return {k: without_nulls(v) for k, v in entry.items() if v is not None} if isinstance(entry, dict) else entry


def write_jsonl(file: Path, members: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, members)), encoding="utf-8")


def write_parquet(file: Path, members: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(members), file)


def as_jsonl(folder: Path, members: Rows) -> CorpusConfig:
    write_jsonl(folder / "own.jsonl", members)
    return CorpusConfig("jsonl", str(folder / "own.jsonl"))


def as_sparse_jsonl(folder: Path, members: Rows) -> CorpusConfig:
    return as_jsonl(folder, without_nulls(members))


def as_parquet(folder: Path, members: Rows) -> CorpusConfig:
    write_parquet(folder / "own.parquet", members)
    return CorpusConfig("parquet", str(folder / "own.parquet"))


def as_dataset_of_jsonl(folder: Path, members: Rows) -> CorpusConfig:
    write_jsonl(folder / "own" / "data.jsonl", members)
    return CorpusConfig("hub", str(folder / "own"))


def as_dataset_of_sparse_jsonl(folder: Path, members: Rows) -> CorpusConfig:
    return as_dataset_of_jsonl(folder, without_nulls(members))


def as_dataset_of_parquet(folder: Path, members: Rows) -> CorpusConfig:
    write_parquet(folder / "own" / "data.parquet", members)
    return CorpusConfig("hub", str(folder / "own"))


Write = Callable[[Path, Rows], CorpusConfig]
WRAPPINGS: list[Write] = [
    as_jsonl,
    as_sparse_jsonl,
    as_parquet,
    as_dataset_of_jsonl,
    as_dataset_of_sparse_jsonl,
    as_dataset_of_parquet,
]
in_every_wrapping = pytest.mark.parametrize("write", WRAPPINGS)


def plain(corpus: Corpus) -> dict[str, list[Dialogue]]:
    return {split: list(dialogues) for split, dialogues in corpus.splits.items()}


@in_every_wrapping
def test_the_same_dialogues_load_to_the_same_corpus(write: Write, tmp_path: Path) -> None:
    """Ids, texts, labels, order and splits do not depend on the wrapping; a null label is an absent one."""
    corpus = load(write(tmp_path, rows(20)))
    assert plain(corpus) == plain(load(as_sparse_jsonl(tmp_path / "reference", rows(20))))
    assert [len(members) for members in corpus.splits.values()] == [14, 3, 3]
    ids = [dialogue.id for members in corpus.splits.values() for dialogue in members]
    assert {name.split("/")[2] for name in ids} == {f"d{n}" for n in range(20)} and len(set(ids)) == 20
    by_id = {d.id.split("/")[2]: d for members in corpus.splits.values() for d in members}
    said = Turn(Speaker.THERAPIST, "I see.", {})
    assert by_id["d3"].labels == {"emotion": "grief", "age": "3"}
    assert by_id["d3"].turns == (Turn(Speaker.CLIENT, "d 3", {"stars": "3"}), said)
    assert by_id["d4"].labels == {"age": "4"}
    assert by_id["d4"].turns == (Turn(Speaker.CLIENT, "d 4", {}), said)


@in_every_wrapping
def test_another_order_and_seed(write: Write, tmp_path: Path) -> None:
    """The order of the rows does not matter, the seed does."""
    one, other = (load(write(tmp_path / name, r)) for name, r in (("a", rows(20)), ("b", rows(20)[::-1])))
    assert plain(one) == plain(other)
    config = write(tmp_path / "a", rows(20))
    assert plain(load(CorpusConfig(config.format, config.path, split_seed=14))) != plain(one)


@in_every_wrapping
def test_provenance_has_the_sha256_of_what_was_read(write: Write, tmp_path: Path) -> None:
    """The record names the format, the file by its hash, and the rule; it can be written as JSON."""
    config = write(tmp_path, rows(20))
    record = load(config).provenance
    file = next(f for f in tmp_path.rglob("*") if f.suffix in {".jsonl", ".parquet"} and "cache" not in f.parts)
    assert record["format"] == config.format
    assert record["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert record["split"] == "by sha256(seed 13/id); valid 0.15, test 0.15"
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("form", "valid", "write"),
    [
        ("jsonl", "valid.jsonl", write_jsonl),
        ("parquet", "valid.parquet", write_parquet),
        ("hub", "valid.parquet", write_parquet),
        ("hub", "validation.jsonl", write_jsonl),
        ("hub", "dev.jsonl", write_jsonl),
    ],
)
def test_splits_that_come_are_kept(form: Form, valid: str, write: Callable[..., None], tmp_path: Path) -> None:
    """Three files, or three splits of a dataset, are the splits, in their order."""
    suffix = Path(valid).suffix
    for file, count in ((f"train{suffix}", 3), (valid, 1), (f"test{suffix}", 2)):
        write(tmp_path / "own" / file, rows(count, prefix=file[:2]))
    corpus = load(CorpusConfig(form, str(tmp_path / "own")))
    assert [[d.id for d in members] for members in corpus.splits.values()] == [
        ["own/train/tr0", "own/train/tr1", "own/train/tr2"],
        [f"own/valid/{valid[:2]}0"],
        ["own/test/te0", "own/test/te1"],
    ]
    files = corpus.provenance["files"]
    assert isinstance(files, dict) and set(files) == {f"train{suffix}", valid, f"test{suffix}"}


def test_a_dataset_without_all_three_splits_is_cut(tmp_path: Path) -> None:
    """Train and test alone are put together and cut by the shares: every dialogue is in one split."""
    write_jsonl(tmp_path / "own" / "train.jsonl", rows(15, "a"))
    write_jsonl(tmp_path / "own" / "test.jsonl", rows(5, "b"))
    corpus = load(CorpusConfig("hub", str(tmp_path / "own")))
    together = load(as_jsonl(tmp_path, rows(15, "a") + rows(5, "b")))
    assert plain(corpus) == plain(together)
    assert corpus.provenance["split"] == together.provenance["split"]


def test_parquet_folders_need_three_files(tmp_path: Path) -> None:
    """A split file that is missing is named."""
    write_parquet(tmp_path / "train.parquet", rows(3))
    with pytest.raises(FileNotFoundError, match=r"must be a \.parquet file, or .* there is no .*valid\.parquet; corr"):
        load(CorpusConfig("parquet", str(tmp_path)))


DAMAGES: list[tuple[dict[str, Any], str]] = [
    ({"id": None}, r": must be an object with an 'id', a text or whole number; fix the row"),
    ({"id": " "}, r": must be an object with an 'id'"),
    ({"id": "d1"}, r": 'id' must be unique, 'd1' is also .* (line|row) 2; rename"),
    ({"turns": []}, r": 'turns' must be a list of turns, is missing or empty"),
    ({"turns": None}, r": 'turns' must be a list of turns, is missing or empty"),
    ({"turns": [{"speaker": "nurse", "text": "x"}]}, r", turn 1: 'speaker' must be client or therapist, is 'nurse'"),
    ({"turns": [{"speaker": "client", "text": " "}]}, r", turn 1: 'text' must be a text, is ' '; fix the turn"),
    ({"turns": [{"speaker": "client", "text": None}]}, r", turn 1: 'text' must be a text, is None"),
    ({"sure": True}, r": label 'sure' must be a text or a number, is True; fix it or remove it"),
]


@in_every_wrapping
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_bad_row_is_named(write: Write, damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What is off is told by file, or dataset and split, and by row, counted from 1."""
    members = [{"sure": None, **row} for row in rows(4)]
    members[2] |= damage
    where = {"jsonl": r"/own\.jsonl line 3", "parquet": r"/own\.parquet row 3", "hub": r"^own train row 3"}
    config = write(tmp_path, members)
    with pytest.raises(CorpusError, match=where[config.format] + message):
        load(config)


@pytest.mark.parametrize("write", [as_parquet, as_dataset_of_parquet])
@pytest.mark.parametrize(
    ("members", "columns"),
    [
        ([{"prompt": "x", "reply": "y"}], r"prompt \(string\), reply \(string\)"),
        ([{"id": "1", "turns": '[{"speaker": "client"}]'}], r"id \(string\), turns \(string\)"),
        ([{"id": "1", "turns": ["hello", "hi"]}], r"id \(string\), turns \(list<.*: string>\)"),
        ([{"id": "1", "turns": [{"role": "client", "text": "x"}]}], r"id \(string\), turns \(list<.*role: string.*\)"),
        ([{"turns": [{"speaker": "client", "text": "x"}]}], r"turns \(list<.*\)"),
    ],
)
def test_other_columns_are_refused_by_name(write: Write, members: Rows, columns: str, tmp_path: Path) -> None:
    """Where columns are missing or of another type, the message says what they must be and what they are."""
    wanted = r"must be id, turns \(a list of structs with speaker and text\) and labels, are "
    with pytest.raises(CorpusError, match=rf"own.*: the columns {wanted}{columns}; rename or convert them"):
        load(write(tmp_path, members))


def test_broken_and_empty_parquet_is_named(tmp_path: Path) -> None:
    """A file that is no Parquet, or holds no row, is refused by name."""
    config = as_parquet(tmp_path, rows(4))
    file = tmp_path / "own.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"/own\.parquet must be Parquet, is not \(.*\); write it again"):
        load(config)
    pq.write_table(pa.Table.from_pylist(rows(4)).slice(0, 0), file)
    with pytest.raises(CorpusError, match=r"/own\.parquet must hold a dialogue, holds none"):
        load(config)


def test_numbers_that_pandas_made_floats(tmp_path: Path) -> None:
    """Whole numbers beside nulls come as 3.0 and NaN: they are the labels "3" and none."""
    members = rows(20)
    for row in members:
        for turn in row["turns"]:
            turn["stars"] = float(turn["stars"] or "nan")
        row["age"] = float(row["age"])
    assert plain(load(as_parquet(tmp_path, members))) == plain(load(as_jsonl(tmp_path, rows(20))))


def test_a_folder_called_like_a_split_is_no_column(tmp_path: Path) -> None:
    """A path such as "part=a/own.parquet" adds no label."""
    corpus = load(as_parquet(tmp_path / "part=a", rows(20)))
    assert {label for d in corpus.train for label in d.labels} == {"age", "emotion"}


def test_class_labels_are_read_by_name(tmp_path: Path) -> None:
    """Labels that a dataset stores as numbers come as their names, in turns too; -1 is none."""
    speaker = datasets.ClassLabel(names=["therapist", "client"])
    text = datasets.Value("string")
    features = datasets.Features(
        id=text, emotion=datasets.ClassLabel(names=["grief", "anger"]), turns=[{"speaker": speaker, "text": text}]
    )
    emotions = [1, 0, -1, None] * 5
    members = [
        {"id": str(n), "emotion": emotion, "turns": [{"speaker": 1, "text": f"{n}"}]}
        for n, emotion in enumerate(emotions)
    ]
    (tmp_path / "own").mkdir()
    datasets.Dataset.from_list(members, features=features).to_parquet(tmp_path / "own" / "data.parquet")
    corpus = load(CorpusConfig("hub", str(tmp_path / "own")))
    by_id = {d.id.split("/")[2]: d for members in corpus.splits.values() for d in members}
    assert [by_id[str(n)].labels for n in range(4)] == [{"emotion": "anger"}, {"emotion": "grief"}, {}, {}]
    assert {turn.speaker for d in by_id.values() for turn in d.turns} == {Speaker.CLIENT}


def test_a_folder_is_read_again(tmp_path: Path) -> None:
    """A file that was replaced is read anew, even if it keeps its time of change, by which `datasets` knows it."""
    config = as_dataset_of_jsonl(tmp_path, rows(20))
    file = tmp_path / "own" / "data.jsonl"
    load(config)
    before = file.stat()
    write_jsonl(file, rows(20, "e"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    corpus = load(config)
    assert {d.id.split("/")[2][0] for members in corpus.splits.values() for d in members} == {"e"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"is not \(The directory at .* doesn't contain any data files\); correct it"),
        ({"train.jsonl": b""}, r"is not \(StopIteration\); correct it"),
        ({"train.jsonl": b'{"id": "1"}\n{'}, r"is not \(JSON parse error: .*\); correct it"),
        ({"train.parquet": b"PAR1"}, r"is not \(.*Parquet.*\); correct it"),
        ({"own.py": b"1 / 0"}, r"is not \(Dataset scripts are no longer supported.*\); correct it"),
        ({"train.txt": b"hello"}, r"own train: the columns must be id, turns .*, are text \(string\)"),
        (
            {"train.jsonl": json.dumps({**rows(1)[0], "id": "caf\xe9"}, ensure_ascii=False).encode("latin-1")},
            r"own train must be UTF-8, is not \('utf-8' codec can't decode byte 0xe9 .*\); save it as UTF-8",
        ),
    ],
)
def test_folders_that_are_no_dataset(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    """What `datasets` cannot read is refused in one line that names the folder or its split."""
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        (tmp_path / "own" / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as refusal:
        load(CorpusConfig("hub", str(tmp_path / "own")))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing:small@v1.0"])
def test_a_hub_that_cannot_be_reached(name: str) -> None:
    """A hub id without a hub is refused in one line that says what to do."""
    with pytest.raises(FileNotFoundError) as refusal:
        load(CorpusConfig("hub", name))
    assert str(refusal.value) == (
        f"corpus.path must be a folder that `datasets` loads or a hub id, '{name}' is no folder and cannot be had from "
        "the hub (Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled)); correct it, or download it first "
        "and give its folder"
    )


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../data", "owner/name@", "owner/name@v1:small", "own/d.jsonl"])
def test_what_is_neither_folder_nor_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the hub to refuse what cannot be a hub id, or is a file."""
    write_jsonl(tmp_path / "own" / "d.jsonl", rows(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"corpus\.path must be .*OWNER/NAME.* is neither; correct it"):
        load(CorpusConfig("hub", name))


def test_a_dataset_that_was_had_from_the_hub_before(tmp_path: Path, no_hub: Path) -> None:
    """Without the hub, what was prepared earlier is read, the revision is recorded, and another one is refused."""
    for split, count in (("train", 3), ("validation", 1), ("test", 2)):
        write_jsonl(tmp_path / "own" / f"{split}.jsonl", rows(count, split))
    local = load(CorpusConfig("hub", str(tmp_path / "own")))
    (prepared,) = (file.parent for file in no_hub.rglob("dataset_info.json"))
    shutil.copytree(prepared, no_hub / "nobody___own" / "default" / "0.0.0" / "c0ffee")
    for name in ("nobody/own", "nobody/own:default", "nobody/own@c0ffee", "nobody/own:default@c0f"):
        corpus = load(CorpusConfig("hub", name))
        assert plain(corpus) == plain(local)
        assert (corpus.provenance["source"], corpus.provenance["revision"]) == (name, "c0ffee")
        assert corpus.provenance["files"] == {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in prepared.glob("*.arrow")
        }
    with pytest.raises(FileNotFoundError, match=r"from the hub \(out of reach, at hand is revision c0ffee\)"):
        load(CorpusConfig("hub", "nobody/own@v2"))
    with pytest.raises(CorpusError, match=r"'nobody/own:large' is not \(Couldn't find cache .*'default'\]\); correct"):
        load(CorpusConfig("hub", "nobody/own:large"))
