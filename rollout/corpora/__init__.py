"""Corpora: raw published files -> `Dialogue`s in three splits, with a record of where they come from."""

from __future__ import annotations

from pathlib import Path

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError
from rollout.corpora.esconv import load_esconv
from rollout.corpora.hope import SPELLINGS, load_hope
from rollout.corpora.hub import load_hub
from rollout.corpora.jsonl import load_jsonl
from rollout.corpora.parquet import load_parquet

__all__ = ["SAMPLE", "Corpus", "CorpusError", "known_acts", "load"]

SAMPLE = Path(__file__).parent / "sample"


def load(config: CorpusConfig) -> Corpus:
    """Read the corpus that `config` names.

    Raises `FileNotFoundError` when nothing is there, and `CorpusError` when it is not what `config.format` says, when
    it is empty, and when a split is empty.
    """
    path = Path(config.path).expanduser()
    match config.format:
        case "sample":
            licence = "Apache-2.0 (written for this project)"
            return load_esconv(SAMPLE / "esconv.json", config, name="sample", licence=licence)
        case "esconv":
            return load_esconv(path, config)
        case "hope":
            return load_hope(path, config)
        case "jsonl":
            return load_jsonl(path, config)
        case "parquet":
            return load_parquet(path, config)
        case "hub":
            return load_hub(path, config)


def known_acts(corpus: CorpusConfig) -> tuple[str, ...]:
    """The dialogue acts that a corpus of this format may have; none where any may be."""
    return tuple(SPELLINGS) if corpus.format in ("hope", "sample") else ()
