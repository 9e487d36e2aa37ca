"""JSON Lines: one dialogue a line, as `rollout.corpora.rows` describes it."""

from __future__ import annotations

import json
from pathlib import Path

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, place, read_text
from rollout.corpora.rows import Rows, load_files


def load_jsonl(path: Path, config: CorpusConfig) -> Corpus:
    """Read one file, or a folder of splits (see `load_files`, also for what is raised); empty lines are skipped."""
    return load_files(path, config, "jsonl", _rows)


def _rows(file: Path) -> Rows:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{place(file)} line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: must be JSON, is not ({error.msg}); fix the line or remove it") from error
