"""`attune fit KIND ...`: fit a head to labelled texts.

    attune fit emotion --data FOLDER --out FOLDER      GoEmotions' folder, or a .tsv: text<TAB>label
    attune fit act --data FOLDER --out FOLDER          HOPE's folder, or a .tsv: text<TAB>label
    attune fit empathy --data FOLDER --out FOLDER      EPITOME's folder of three .csv files
    attune fit crisis --out FOLDER                     the shipped sentences, or --data FOLDER with train.tsv, held_out.tsv
    attune fit preference --out FOLDER [...]           a preference model from stars or ratings

`attune fit KIND --help` lists the settings. The same command gives the same bytes on the same machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.settings import help_text, load
from rewards.fit_config import FitConfig

if TYPE_CHECKING:
    from rewards.encoder import SentenceEncoder
    from rewards.head_features import Floats
    from rewards.labelled import Example, LabelledSplits

KINDS = ("emotion", "act", "empathy", "crisis", "preference")


def fit_command(words: Sequence[str]) -> int:
    """Run `attune fit WORDS`; the exit code. Raises ValueError, in one line, for wrong settings and input."""
    if words and words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if not words or words[0] not in KINDS:
        raise ValueError(
            f"attune fit needs one of {', '.join(KINDS)}, got {' '.join(words[:1]) or 'nothing'!r}; name one"
        )
    kind = words[0]
    if kind == "preference":
        from rewards.fit_preference import fit_preference_command

        return fit_preference_command(words[1:])
    if any(word in ("-h", "--help") for word in words):
        print(help_text(FitConfig, f"attune fit {kind}"))
        return 0
    run(kind, load(FitConfig, argv=words[1:]), say)
    return 0


def say(line: str) -> None:
    """Progress, at once."""
    print(line, flush=True)


def run(kind: str, config: FitConfig, say: Callable[[str], None]) -> None:
    """Fit a head of `kind` and write the folder `config.out`, all of it or nothing."""
    from rewards.head_folder import check_free, write_folder

    out = check_free(config.out)  # before anything is computed
    if not config.data and kind != "crisis":
        raise ValueError("data must name what to fit, is ''; give --data FOLDER")
    files = _FITS[kind](kind, Path(config.data).expanduser(), config, say)
    write_folder(out, files)
    say(f"{kind} head: {out}")


def _single(kind: str, data: Path, config: FitConfig, say: Callable[[str], None]) -> dict[str, bytes]:
    from rewards.encoder import SentenceEncoder
    from rewards.head_features import Features
    from rewards.labelled import goemotions, hope_acts, own_examples

    if data.is_file():
        read = own_examples(data, config.seed)
    elif data.is_dir():
        read = goemotions(data) if kind == "emotion" else hope_acts(data)
    else:
        raise FileNotFoundError(f"data must be a folder or a .tsv file, there is nothing at {data}; correct it")
    _tell(read, say)
    encoder = SentenceEncoder(config.encoder)
    features = Features(encoder, (e.text for split in read.splits.values() for e in split), say)
    return fit_head(kind, read, lambda split: features.of([e.text for e in split]), encoder, config, say)


def _empathy(kind: str, data: Path, config: FitConfig, say: Callable[[str], None]) -> dict[str, bytes]:
    from rewards.encoder import SentenceEncoder
    from rewards.head_features import Features, exchange
    from rewards.labelled import EMPATHY_FILES, epitome

    reads = {mechanism: epitome(data, mechanism, config.seed) for mechanism in EMPATHY_FILES}
    encoder = SentenceEncoder(config.encoder)
    every = [e for read in reads.values() for split in read.splits.values() for e in split]
    features = Features(encoder, (text for e in every for text in (e.text, e.client)), say)

    def of(split: Sequence[Example]) -> Floats:
        return exchange(features.of([e.text for e in split]), features.of([e.client for e in split]))

    files = dict[str, bytes]()
    for mechanism, read in reads.items():
        say(mechanism)
        _tell(read, say)
        head = fit_head(kind, read, of, encoder, config, say)
        files |= {f"{mechanism}/{name}": content for name, content in head.items()}
    return files


def _crisis(kind: str, data: Path, config: FitConfig, say: Callable[[str], None]) -> dict[str, bytes]:
    from rewards.fit_crisis import fit_crisis

    return fit_crisis(data if config.data else None, config, say)


_FITS: Mapping[str, Callable[[str, Path, FitConfig, Callable[[str], None]], dict[str, bytes]]] = {
    "emotion": _single,
    "act": _single,
    "empathy": _empathy,
    "crisis": _crisis,
}


def fit_head(
    kind: str,
    read: LabelledSplits,
    features_of: Callable[[Sequence[Example]], Floats],
    encoder: SentenceEncoder,
    config: FitConfig,
    say: Callable[[str], None],
) -> dict[str, bytes]:
    """The files of a head: the penalty with the best macro-F1 on the valid split (the stronger of two that are as good),
    the temperature with the least negative log-likelihood there, scores of the test split."""
    import numpy as np

    from rewards.head_folder import Pages, head_files, score_tables
    from rewards.head_scores import confusion, macro_f1, scores
    from rewards.heads import encoder_vector, softmax
    from rewards.softmax_regression import fits, nll, temperature

    number = {label: c for c, label in enumerate(read.labels)}
    x = {name: features_of(split) for name, split in read.splits.items()}
    y = {name: np.array([number[e.label] for e in split]) for name, split in read.splits.items()}
    tried = [
        (macro_f1(confusion(fit.logits(x["valid"]).argmax(axis=1), y["valid"], len(number))), fit)
        for fit in fits(x["train"], y["train"], say)
    ]
    best, fit = max(tried, key=lambda one: (round(one[0], 4), -one[1].strength))
    valid_NC, test_NC = fit.logits(x["valid"]), fit.logits(x["test"])
    warmth = temperature(valid_NC, y["valid"])
    before_NC, after_NC = softmax(test_NC), softmax(test_NC / warmth)
    majority = Counter(y["train"].tolist()).most_common(1)[0][0]
    found = scores(
        before_NC, after_NC, y["test"], read.labels, majority=majority, resamples=config.resamples, seed=config.seed
    )
    found["valid"] = {
        "macro_f1": round(best, 4),
        "nll_before": round(nll(valid_NC, y["valid"]), 4),
        "nll_after": round(nll(valid_NC / warmth, y["valid"]), 4),
    }
    say(
        f"  strength {fit.strength:g}, temperature {warmth:g}; held out: macro-F1 {found['macro_f1']['value']:.3f}, accuracy "
        f"{found['accuracy']['value']:.3f} (always {found['majority_label']!r}: {found['majority_accuracy']['value']:.3f})"
    )
    card = base_card(kind, read.labels, encoder, config) | {
        "strength": fit.strength,
        "temperature": warmth,
        "chosen": "Penalty chosen by macro-F1, temperature by likelihood, both on the valid split.",
        "data": {
            **read.source,
            "rows": {name: len(split) for name, split in read.splits.items()},
            "left_out": dict(read.left_out),
        },
        "scores": found,
    }
    pages = Pages(card, score_tables(found))
    return head_files(fit, encoder_vector(encoder), pages, before_NC, after_NC, y["test"])


def base_card(kind: str, labels: Sequence[str], encoder: SentenceEncoder, config: FitConfig) -> dict[str, Any]:
    """What every card begins with; no date, so that a fit repeats byte for byte."""
    return {
        "kind": kind,
        "labels": list(labels),
        "encoder": {"path": config.encoder.path, "max_tokens": config.encoder.max_tokens, "width": encoder.width},
        "seed": config.seed,
        "resamples": config.resamples,
    }


def _tell(read: LabelledSplits, say: Callable[[str], None]) -> None:
    say(", ".join(f"{name} {len(split)} rows" for name, split in read.splits.items()))
    for why, count in read.left_out.items():
        say(f"  left out, {why}: {count} rows")
