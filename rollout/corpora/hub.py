"""Datasets in the formats and on the hub of Hugging Face `datasets`, rows as `rollout.corpora.rows` describes them.

`corpus.path` is a local folder that `datasets.load_dataset` reads, else a hub id: `OWNER/NAME`, with a configuration
`OWNER/NAME:CONFIG`, at a revision `OWNER/NAME@REVISION`, or with both, in this order. Class labels are read by name.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, assemble, fingerprints
from rollout.corpora.parquet import check_columns
from rollout.corpora.rows import OWN, Rows, by_hash, dialogues

VALID = ("validation", "valid", "dev", "val")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")


def load_hub(path: Path, config: CorpusConfig) -> Corpus:
    """Read a dataset; its splits train, validation and test are ours when it has all three.

    Otherwise all of its splits together are ordered by a hash of (`config.split_seed`, id) and cut by the shares. Ids
    are `NAME/train/ID`, without the owner. The provenance has sha256 of a folder's data files; of a hub id, sha256 of
    the tables made of it, `source` and `revision` (the commit). Raises `FileNotFoundError` when there is no folder and
    no dataset to be had, and `CorpusError` naming split and row.
    """
    if path.is_dir():
        folder = path.resolve()
        builder, splits = _open(config.path, str(folder), again=True)
        name, origin = folder.name, {}
        files = [Path(file) for found in builder.config.data_files.values() for file in found]
    elif not path.exists() and (hub := _HUB_ID.fullmatch(config.path)):
        builder, splits = _open(config.path, hub["id"], name=hub["config"], revision=hub["revision"])
        name, origin = hub["id"].split("/")[1], {"source": config.path, "revision": builder.hash}
        folder = Path(builder.cache_dir)
        files = [Path(table["filename"]) for split in splits.values() for table in split.cache_files]
    else:
        raise FileNotFoundError(
            "corpus.path must be a folder that `datasets` loads or a hub id OWNER/NAME[:CONFIG][@REVISION], "
            f"{config.path!r} is neither; correct it (one file is corpus.format jsonl or parquet)"
        )
    names = {"train": "train", "valid": next((valid for valid in VALID if valid in splits), ""), "test": "test"}
    published = all(split in splits for split in names.values())
    seen: dict[str, str] = {}
    parts = {
        split: dialogues(_rows(splits[split], f"{name} {split}"), f"{name} {split}", seen)
        for split in (names.values() if published else splits)
    }
    if published:
        ours, rule = {split: parts[theirs] for split, theirs in names.items()}, f"splits {', '.join(parts)}"
    else:
        ours, rule = by_hash([dialogue for part in parts.values() for dialogue in part], config)
    corpus = assemble(name, ours, source="hub", files=fingerprints(files, folder), rule=rule, licence=OWN)
    return replace(corpus, provenance={**corpus.provenance, **origin})


def _open(
    said: str, source: str, *, name: str | None = None, revision: str | None = None, again: bool = False
) -> tuple[Any, Any]:
    """The builder of a dataset and its splits; `said` is how the user calls it, `again` reads what was read before.

    `datasets` knows a local file by its name and time only: without `again` it may give an earlier content.
    """
    import datasets  # takes a second, which other formats need not wait for

    try:
        builder = datasets.load_dataset_builder(source, name=name, revision=revision)
        # Where the hub is out of reach, `datasets` gives the latest that it has prepared before, whatever its revision.
        if revision and builder.config.data_files is None and not builder.hash.startswith(revision):
            raise ConnectionError(f"out of reach, at hand is revision {builder.hash}")
        builder.download_and_prepare(download_mode="reuse_cache_if_exists" if again else None)
        return builder, builder.as_dataset()
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"corpus.path must be a folder that `datasets` loads or a hub id, {said!r} is no folder and cannot be had "
            f"from the hub ({_reason(error)}); correct it, or download it first and give its folder"
        ) from error
    # StopIteration is what an empty file ends in
    except (OSError, ValueError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(
            f"corpus.path must be a dataset that `datasets` loads, {said!r} is not ({_reason(error)}); correct it"
        ) from error


def _reason(error: BaseException) -> str:
    """The cause in one line: `datasets` wraps it into "an error occurred"."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__


def _rows(split: Any, source: str) -> Rows:
    if len(split):
        check_columns(split.features.arrow_schema, source, json_turns=True)  # what turns with unlike keys become
    try:
        for number, row in enumerate(split, start=1):
            yield f"{source} row {number}", _named(row, split.features)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{source} must be UTF-8, is not ({error}); save it as UTF-8") from error


def _named(entry: Any, feature: Any) -> Any:
    """`entry` with class labels, which are stored as numbers, by their names; -1 is the hub's null."""
    from datasets import ClassLabel, LargeList, List

    match feature:
        case _ if entry is None:
            return None
        case ClassLabel():
            return None if entry < 0 else feature.int2str(entry)
        case List() | LargeList():
            return [_named(one, feature.feature) for one in entry]
        case dict():
            return {key: _named(one, feature[key]) for key, one in entry.items()}
        case _:
            return entry
