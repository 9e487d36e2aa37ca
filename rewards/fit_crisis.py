"""`attune fit crisis`: the head that hears danger, its threshold, and what rules and head hear of held-out sentences.

Axes: N texts, F features, C tiers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier, crisis_tier, gravest
from rewards.crisis_head import DANGER, joined, tiers_of
from rewards.danger import IN_DANGER
from rewards.danger_kernel import fit_kernel, platt
from rewards.encoder import SentenceEncoder
from rewards.fit import base_card
from rewards.fit_config import FitConfig
from rewards.head_features import Features, Floats
from rewards.head_folder import Pages, head_files, interval, score_tables
from rewards.head_scores import bootstrap, scores
from rewards.heads import encoder_vector, softmax
from rewards.labelled import OWN, crisis_rows, goemotions
from rewards.softmax_regression import STRENGTHS, fit, nll, temperature
from rollout.config import CorpusConfig
from rollout.corpora import load as load_corpus
from rollout.corpora.corpus import CorpusError, fingerprints
from rollout.types import Speaker

SENTENCES = Path(__file__).parent / "crisis_sentences"
TRAIN, HELD_OUT = "train.tsv", "held_out.tsv"
WANTED_RECALL = 0.95
ORDINARY = 5000  # comments that are drawn from `ordinary`
FOLDS = 5
TIERS = tuple(Tier)
_TRAP = "trap"
_TALK = "Apache-2.0 (GoEmotions, its authors: ordinary talk)"
_WHOLE = {
    "recall": "danger heard (recall)",
    "precision": "alarms that are right (precision)",
    "traps_pass": "harmless sentences that sound dangerous and pass",
    "others_pass": "other harmless sentences that pass",
    "tier_right": "tier right, where danger is heard",
}

Row = tuple[str, str, str]  # text, tier, kind
Say = Callable[[str], None]


def fit_crisis(data: Path | None, config: FitConfig, say: Say) -> dict[str, bytes]:
    """The files of a crisis head, fitted to `data`/train.tsv and measured on `data`/held_out.tsv (None: the shipped ones).

    Ordinary talk counts as harmless beside the training sentences: the clients' turns of the shipped corpus, and comments
    of `config.ordinary`. Probability and threshold are chosen on sentences that were judged by a machine that had not seen
    their fold: by likelihood, and so that danger is missed in at most 5 % of the dangerous training sentences.
    """
    folder = data or SENTENCES
    train, held = (crisis_rows(folder / name, TIERS) for name in (TRAIN, HELD_OUT))
    _check(train, held)
    ordinary, talk = _ordinary(config)
    known = {text for text, _, _ in [*train, *held]}
    ordinary = [text for text in ordinary if text not in known]
    say(f"train {len(train)} sentences and {len(ordinary)} of ordinary talk, held out {len(held)}")
    encoder = SentenceEncoder(config.encoder)
    features = Features(encoder, [*(text for text, _, _ in [*train, *held]), *ordinary], say)
    train_NF, y_N = features.of([text for text, _, _ in train]), _numbers(train)
    every_NF = np.concatenate([train_NF, features.of(ordinary)]) if ordinary else train_NF
    danger_N = np.concatenate([_dangerous(train), np.zeros(len(ordinary), dtype=bool)])
    margin_N, logit_NC, strength = _unseen(every_NF, danger_N, train_NF, y_N, config.seed, say)
    slope, offset = platt(margin_N, danger_N)
    warmth = temperature(logit_NC, y_N)
    kernel = replace(fit_kernel(every_NF, danger_N, config.seed), slope=slope, offset=offset)
    final = fit(train_NF, y_N, strength)

    unseen_N = 1 / (1 + np.exp(-(slope * margin_N + offset)))
    unseen_NC = joined(unseen_N[: len(train)], softmax(logit_NC / warmth), TIERS)
    threshold = _threshold(unseen_N[: len(train)], _dangerous(train))
    held_texts = [text for text, _, _ in held]
    held_NF = features.of(held_texts)
    before_NC = softmax(final.logits(held_NF))
    after_NC = joined(kernel.probabilities(held_NF), softmax(final.logits(held_NF) / warmth), TIERS)
    majority = Counter(y_N.tolist()).most_common(1)[0][0]
    found = scores(
        before_NC, after_NC, _numbers(held), TIERS, majority=majority, resamples=config.resamples, seed=config.seed
    )
    found["unseen_train"] = {
        **hearing(train, tiers_of(unseen_NC, TIERS, threshold), config),
        "ordinary_alarms": round(float(np.mean(unseen_N[len(train) :] >= threshold)), 4) if ordinary else None,
    }
    told = tiers_of(after_NC, TIERS, threshold)
    rules = [crisis_tier(text) for text in held_texts]
    readings = {"rules": rules, "head": told, "either": [gravest(pair) for pair in zip(rules, told, strict=True)]}
    found["danger"] = {name: hearing(held, tiers, config) for name, tiers in readings.items()}
    for name, said in found["danger"].items():
        say(f"  {name}: " + ", ".join(f"{what} {interval(said[what])}" for what in _WHOLE if what in said))
    card = base_card("crisis", TIERS, encoder, config) | {
        "strength": strength,
        "temperature": warmth,
        "threshold": threshold,
        "chosen": f"Danger is told by a kernel machine ({len(kernel.weight_S)} support vectors on {len(kernel.components_KF)} "
        f"principal components, gamma {kernel.gamma:g}), the layer tells which. Probabilities and threshold chosen on "
        f"sentences in {FOLDS} folds, each judged by a machine that had not seen it; threshold {threshold:g} on the "
        f"probability of danger, for a recall of {WANTED_RECALL} there.",
        "data": {
            "files": fingerprints([folder / TRAIN, folder / HELD_OUT], folder) | talk,
            "licence": "; ".join(
                [OWN if data else "Apache-2.0 (written for this project)", *([_TALK] if talk else [])]
            ),
            "split": "files train, held_out",
            "rows": {"train": len(train), "ordinary talk": len(ordinary), "held out": len(held)},
            "left_out": {},
        },
        "scores": found,
    }
    pages = Pages(card, [*_danger_tables(found["danger"]), *score_tables(found)])
    files = head_files(final, encoder_vector(encoder), pages, before_NC, after_NC, _numbers(held))
    return files | {DANGER: kernel.to_bytes()}


def _ordinary(config: FitConfig) -> tuple[list[str], dict[str, str]]:
    """What people say when they are in no danger, and which files it comes from; what the rules take for danger is left
    out."""
    sample = load_corpus(CorpusConfig())
    turns = (turn for split in sample.splits.values() for dialogue in split for turn in dialogue.turns)
    own = {
        t.text for t in turns if t.speaker is Speaker.CLIENT and t.labels.get("tier", "none") in ("none", "distress")
    }
    comments, files = set[str](), dict[str, str]()
    if config.ordinary:
        read = goemotions(Path(config.ordinary).expanduser())
        comments = {example.text for example in read.splits["train"]}
        files = {f"ordinary/{name}": sha for name, sha in read.source["files"].items() if name == "train.tsv"}
    drawn = sorted(comments, key=lambda text: hashlib.sha256(f"{config.seed}/{text}".encode()).digest())[:ORDINARY]
    return [text for text in [*sorted(own), *drawn] if crisis_tier(text) not in IN_DANGER], files


def hearing(rows: Sequence[Row], tiers: Sequence[Tier], config: FitConfig) -> dict[str, Any]:
    """How a reading hears danger (a tier of other, passive, active, imminent) in labelled sentences.

    `recall` and `precision`; `traps_pass`, the share of harmless sentences of kind trap in which none is heard, and
    `others_pass` of the other harmless ones; `tier_right`, of the dangerous ones that are heard, the share with their tier;
    `recall_by_tier`, `recall_by_kind`. What there are no rows for is absent.
    """
    danger_N = _dangerous(rows)
    heard_N = np.array([tier in IN_DANGER for tier in tiers])
    trap_N = np.array([kind == _TRAP for _, _, kind in rows])
    right_N = np.array([tier == label for tier, (_, label, _) in zip(tiers, rows, strict=True)])
    shares = {
        "recall": (heard_N, danger_N),
        "precision": (danger_N, heard_N),
        "traps_pass": (~heard_N, ~danger_N & trap_N),
        "others_pass": (~heard_N, ~danger_N & ~trap_N),
        "tier_right": (right_N, danger_N & heard_N),
    }
    whole = {name: _share(*share, config) for name, share in shares.items() if share[1].any()}
    by = {"recall_by_tier": 1, "recall_by_kind": 2}
    parts = {
        name: {
            value: _share(heard_N, among_N, config)
            for value in dict.fromkeys(row[column] for row in rows)
            if (among_N := danger_N & np.array([row[column] == value for row in rows])).any()
        }
        for name, column in by.items()
    }
    return {**whole, **parts}


def _share(holds_N: NDArray[np.bool_], among_N: NDArray[np.bool_], config: FitConfig) -> dict[str, float]:
    holds_N = holds_N[among_N]
    rows = len(holds_N)
    return {**bootstrap(lambda at: float(holds_N[at].mean()), rows, config.resamples, config.seed), "rows": rows}


def _unseen(
    every_NF: Floats, danger_N: NDArray[np.bool_], train_NF: Floats, y_N: NDArray[np.int64], seed: int, say: Say
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The kernel machine's margin of each text and the layer's logits of each training sentence, by machines that were
    fitted without its fold; and the layer's best penalty, by likelihood."""
    from sklearn.model_selection import StratifiedKFold

    margin_N = np.zeros(len(every_NF))
    logits = {strength: np.zeros((len(train_NF), len(TIERS))) for strength in STRENGTHS}
    kind_N = np.concatenate([y_N, np.full(len(every_NF) - len(y_N), len(TIERS))])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (seen, left) in enumerate(folds.split(every_NF, kind_N), start=1):
        margin_N[left] = fit_kernel(every_NF[seen], danger_N[seen], seed).margins(every_NF[left])
        seen, left = (part[part < len(y_N)] for part in (seen, left))
        for strength in STRENGTHS:
            logits[strength][left] = fit(train_NF[seen], y_N[seen], strength).logits(train_NF[left])
        say(f"  fold {number} of {FOLDS} fitted")
    best = min(STRENGTHS, key=lambda strength: (round(nll(logits[strength], y_N), 4), strength))
    say(f"  strength {best:g}")
    return margin_N, logits[best], best


def _threshold(danger_N: NDArray[np.float64], dangerous_N: NDArray[np.bool_]) -> float:
    """The highest threshold, to four digits, at which `WANTED_RECALL` of the dangerous sentences are heard."""
    rising = np.sort(danger_N[dangerous_N])
    allowed = int((1 - WANTED_RECALL) * len(rising) + 1e-9)
    return float(np.floor(rising[allowed] * 1e4) / 1e4)


def _numbers(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([TIERS.index(Tier(tier)) for _, tier, _ in rows])


def _dangerous(rows: Sequence[Row]) -> NDArray[np.bool_]:
    return np.array([tier in IN_DANGER for _, tier, _ in rows])


def _check(train: Sequence[Row], held: Sequence[Row]) -> None:
    count = Counter(tier for _, tier, _ in train)
    if few := [str(tier) for tier in TIERS if count[tier] < FOLDS]:
        raise CorpusError(f"{TRAIN} must hold {FOLDS} sentences of every tier, {few[0]} has {count[few[0]]}; add some")
    if not 0 < _dangerous(held).sum() < len(held):
        raise CorpusError(f"{HELD_OUT} must hold dangerous and harmless sentences, is all of one sort; add the other")
    if both := sorted({text for text, _, _ in train} & {text for text, _, _ in held}):
        raise CorpusError(f"{HELD_OUT} may share no sentence with {TRAIN}, {both[0]!r} is in both; remove it from one")


def _danger_tables(danger: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    header = ("held-out sentences", "rows", *danger)
    any_ = danger["either"]
    whole = [
        _line(title, [said.get(name) for said in danger.values()]) for name, title in _WHOLE.items() if name in any_
    ]
    parts = [
        _line(f"recall, {value}", [said[by][value] for said in danger.values()])
        for by in ("recall_by_tier", "recall_by_kind")
        for value in any_[by]
    ]
    return [("Danger", header, whole), ("Danger by tier and by kind", header, parts)]


def _line(title: str, shares: Sequence[Mapping[str, float] | None]) -> list[str]:
    rows = "/".join(dict.fromkeys(str(share["rows"]) for share in shares if share))
    return [title, rows, *(interval(share) if share else "-" for share in shares)]
