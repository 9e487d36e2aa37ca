"""`attune fit preference`: fit a preference model to stars of a corpus, or to a file of ratings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.settings import help_text, load, require_at_least
from rewards.config import EncoderConfig
from rewards.rated_replies import RatedReply, RatedSplits, read_ratings, split_by_group, starred
from rollout.config import CorpusConfig
from rollout.corpora.corpus import fingerprints

if TYPE_CHECKING:
    from rewards.encoder import SentenceEncoder

DRAWS = 1000


@dataclass(frozen=True)
class FitPreferenceConfig:
    """Settings of `attune fit preference`."""

    out: str = ""
    """Folder to write; it must not exist, or be empty."""
    ratings: str = ""
    """A .jsonl or .parquet file of ratings; "" takes the stars of the corpus."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """A corpus whose client turns have the label `stars`; its own splits are used."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The sentence encoder, as in `rewards.encoder`."""
    members: int = 8
    """Heads of the ensemble."""
    seed: int = 0
    """Seed of the splits (of ratings), of the bootstrap samples and of the priors."""

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out must name the folder to write, is ''; give --out FOLDER")
        if self.ratings and self.corpus != CorpusConfig():
            raise ValueError(f"ratings must be '' when a corpus is given, is {self.ratings!r}; give one of the two")
        require_at_least(2, "", self, "members")
        require_at_least(0, "", self, "seed")


def fit_preference_command(words: Sequence[str]) -> int:
    """Run `attune fit preference WORDS`; the exit code. Raises ValueError, in one line, for wrong settings and input."""
    if any(word in ("-h", "--help") for word in words):
        print(help_text(FitPreferenceConfig, "attune fit preference"))
        return 0
    config = load(FitPreferenceConfig, argv=words)
    from rewards.head_folder import check_free

    out = check_free(config.out)  # before anything is computed
    splits, source = _ratings(config)
    for name, split in vars(splits).items():
        _say(f"{name}: {len(split)} rated replies of {len({rated.group for rated in split})} dialogues")
    from rewards.encoder import SentenceEncoder

    encoder = SentenceEncoder(config.encoder)
    fit_preference(
        splits, encoder, config.encoder, out, members=config.members, seed=config.seed, source=source, say=_say
    )
    return 0


def fit_preference(
    splits: RatedSplits,
    encoder: SentenceEncoder,
    encoder_config: EncoderConfig,
    out: Path,
    *,
    members: int = 8,
    seed: int = 0,
    draws: int = DRAWS,
    source: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Fit to rated replies, write the folder `out` (all of it or nothing), and return its card.

    `source` says where the ratings come from: `files` (name -> sha256) and `licence`. The same arguments give the same
    bytes. Raises ValueError when `out` holds something, or the ratings are too few or all the same.
    """
    from rewards.head_folder import check_free
    from rewards.preference_card import MODEL_CARD, PLOT, draw, model_card, verdicts
    from rewards.preference_ensemble import CARD, base_card, write_ensemble
    from rewards.preference_features import FEATURE_SETS, Sight, embedded, texts_of
    from rewards.preference_report import report_on
    from rewards.preference_ridge import fit_ensemble

    check_free(str(out))
    replies = [rated for split in vars(splits).values() for rated in split]
    texts = texts_of((rated.history, rated.reply) for rated in replies)
    sight = Sight(embedded(encoder, texts, say), encoder.width)
    say(f"fitting: {', '.join(FEATURE_SETS)}; then {members} members")
    ensemble, tried = fit_ensemble(splits.train, splits.valid, sight, FEATURE_SETS, members=members, seed=seed)
    say(f"  chosen: {tried[0].features}, penalty {tried[0].penalty:g}, valid Spearman {tried[0].valid_spearman:.3f}")
    report = report_on(ensemble, tried, splits, sight, members=members, seed=seed, draws=draws, say=say)
    slope, offset = ensemble.calibration.tolist()
    card = {
        **base_card(ensemble, encoder, encoder_config),
        "seed": seed,
        "draws": draws,
        "calibration": {"slope": slope, "offset": offset},
        "source": dict(source),
        "report": report.as_json(),
    }
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_ensemble(ensemble, partial)
    (partial / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (partial / MODEL_CARD).write_text(model_card(report, card), encoding="utf-8")
    draw(report, partial / PLOT)
    os.replace(partial, out)
    for line in filter(None, verdicts(report).split("\n")):
        say(line.replace("**", ""))
    say(f"preference model: {out}")
    return card


def _ratings(config: FitPreferenceConfig) -> tuple[RatedSplits, dict[str, Any]]:
    if config.ratings:
        file = Path(config.ratings).expanduser()
        splits = split_by_group(read_ratings(file), config.seed)
        return splits, {
            "files": fingerprints([file], file.parent),
            "licence": "the user's own ratings: licence not stated",
        }
    from rollout.corpora import load as load_corpus

    corpus = load_corpus(config.corpus)
    parts: dict[str, tuple[RatedReply, ...]] = {name: tuple(starred(split)) for name, split in corpus.splits.items()}
    return RatedSplits(**parts), {key: corpus.provenance[key] for key in ("files", "licence", "split")}


def _say(line: str) -> None:
    print(line, flush=True)
