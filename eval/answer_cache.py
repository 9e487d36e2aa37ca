"""Answers kept by what they depend on: an arm that was asked the same things is not asked again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.arms import Answer, Outcome
from rollout.types import Prompt

_FORM = 1  # of the files; a new one makes everything be asked again
_SCHEMA = pa.schema([
    ("prompt_id", pa.string()), ("sample", pa.int32()), ("text", pa.string()), ("outcome", pa.string()),
    ("error", pa.string()), ("written", pa.string()), ("reference_logprobs", pa.list_(pa.float64())),
])  # fmt: skip


def kept(folder: Path, name: str, key: Mapping[str, Any], ask: Callable[[], Sequence[Answer]]) -> list[Answer]:
    """The answers under `key` in `folder`, asked for where they are not there yet. A batch with a failure is not kept: the next
    run asks again."""
    digest = hashlib.sha256(json.dumps([_FORM, key], sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{digest[:16]}.parquet"
    if path.is_file():
        return [_read(row) for row in pq.read_table(path).to_pylist()]
    answers = list(ask())
    if not any(answer.outcome is Outcome.FAILED for answer in answers):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        rows = [{**asdict(answer), "written": json.dumps(dict(answer.written))} for answer in answers]
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), partial)
        os.replace(partial, path)
    return answers


def _read(row: dict[str, Any]) -> Answer:
    row |= {"outcome": Outcome(row["outcome"]), "written": json.loads(row["written"])}
    return Answer(**row | {"reference_logprobs": tuple(row["reference_logprobs"])})


def prompts_key(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all that an answer, or a choice among answers, may depend on in prompts."""
    asked = [
        [
            p.id,
            list(p.token_ids),
            [[t.speaker.value, t.text, dict(t.labels)] for t in p.history],
            p.reference,
            p.emotion,
            dict(p.labels),
        ]
        for p in prompts
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def model_key(source: str, revision: str) -> str:
    """What a model is: of a folder, the SHA-256 of its files; of a hub id its name and commit."""
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{_commit(source, revision)}"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.cache
def _commit(hub_id: str, revision: str) -> str:
    """The commit that `revision` names now, or in the local copy where the hub cannot be reached; itself where neither knows."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(hub_id, "config.json", revision=revision or None)
    except OSError:
        return revision  # whoever loads the model will say what is wrong
    return extract_commit_hash(path, None) or revision


@functools.cache
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
