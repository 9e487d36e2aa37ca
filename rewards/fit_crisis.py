"""`attune fit crisis`: the head that hears danger, its threshold, and what rules and head hear of held-out sentences.

Axes: N texts, F and V features (of the encoder, of the wording), C tiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier, crisis_tier, gravest
from rewards.crisis_head import WORDING, Wording, crisis_features, tiers_of
from rewards.danger import IN_DANGER
from rewards.encoder import SentenceEncoder
from rewards.fit import base_card
from rewards.fit_config import FitConfig
from rewards.head_features import Features, Floats
from rewards.head_folder import Pages, head_files, interval, json_bytes, score_tables
from rewards.head_scores import bootstrap, scores
from rewards.heads import encoder_vector, softmax
from rewards.labelled import OWN, crisis_rows
from rewards.softmax_regression import STRENGTHS, fit, nll, temperature
from rollout.corpora.corpus import CorpusError, fingerprints

SENTENCES = Path(__file__).parent / "crisis_sentences"
TRAIN, HELD_OUT = "train.tsv", "held_out.tsv"
WANTED_RECALL = 0.97
FOLDS = 5
TIERS = tuple(Tier)
_TRAP = "trap"
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

    Penalty, temperature and threshold are chosen on the training sentences, each judged by a head that was fitted without
    its fold: by the area under the curve of danger, by likelihood, and so that danger is missed in at most 3 %.
    """
    folder = data or SENTENCES
    train, held = (crisis_rows(folder / name, TIERS) for name in (TRAIN, HELD_OUT))
    _check(train, held)
    say(f"train {len(train)} sentences, held out {len(held)}")
    encoder = SentenceEncoder(config.encoder)
    features = Features(encoder, (text for text, _, _ in [*train, *held]), say)
    texts, y_N = [text for text, _, _ in train], _numbers(train)
    logit_NC, strength = _unseen(features.of(texts), texts, y_N, config.seed, say)
    warmth = temperature(logit_NC, y_N)
    unseen_NC = softmax(logit_NC / warmth)
    threshold = _threshold(_danger(unseen_NC), _dangerous(train))
    wording = Wording.of(texts)
    final = fit(crisis_features(features.of(texts), wording, texts), y_N, strength)
    held_texts = [text for text, _, _ in held]
    held_NC = final.logits(crisis_features(features.of(held_texts), wording, held_texts))
    before_NC, after_NC = softmax(held_NC), softmax(held_NC / warmth)
    majority = Counter(y_N.tolist()).most_common(1)[0][0]
    found = scores(
        before_NC, after_NC, _numbers(held), TIERS, majority=majority, resamples=config.resamples, seed=config.seed
    )
    found["unseen_train"] = {
        **hearing(train, tiers_of(unseen_NC, TIERS, threshold), config),
        "nll_before": round(nll(logit_NC, y_N), 4),
        "nll_after": round(nll(logit_NC / warmth, y_N), 4),
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
        "chosen": f"Features also: the wording (tf-idf of {len(wording.terms)} runs of words). Penalty, temperature and "
        f"threshold chosen on the training sentences in {FOLDS} folds, each judged by a head that had not seen it; "
        f"threshold {threshold:g} on the probability of danger, for a recall of {WANTED_RECALL} there.",
        "data": {
            "files": fingerprints([folder / TRAIN, folder / HELD_OUT], folder),
            "licence": OWN if data else "Apache-2.0 (written for this project)",
            "split": "files train, held_out",
            "rows": {"train": len(train), "held out": len(held)},
            "left_out": {},
        },
        "scores": found,
    }
    pages = Pages(card, [*_danger_tables(found["danger"]), *score_tables(found)])
    files = head_files(final, encoder_vector(encoder), pages, before_NC, after_NC, _numbers(held))
    return files | {WORDING: json_bytes({"terms": wording.terms, "idf": wording.idf_V})}


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
    text_NF: Floats, texts: Sequence[str], y_N: NDArray[np.int64], seed: int, say: Say
) -> tuple[NDArray[np.float64], float]:
    """The logits of each training sentence by a head that was fitted without its fold, and the best penalty."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    logits = {strength: np.zeros((len(texts), len(TIERS))) for strength in STRENGTHS}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (seen, left) in enumerate(folds.split(text_NF, y_N), start=1):
        wording = Wording.of([texts[i] for i in seen])
        seen_NF, left_NF = (crisis_features(text_NF[i], wording, [texts[k] for k in i]) for i in (seen, left))
        for strength in STRENGTHS:
            logits[strength][left] = fit(seen_NF, y_N[seen], strength).logits(left_NF)
        say(f"  fold {number} of {FOLDS} fitted")
    dangerous_N = np.array([TIERS[c] in IN_DANGER for c in y_N])
    area = {strength: roc_auc_score(dangerous_N, _danger(softmax(found))) for strength, found in logits.items()}
    best = max(STRENGTHS, key=lambda strength: (round(area[strength], 4), -strength))
    say(f"  strength {best:g}, area under the curve {area[best]:.3f}")
    return logits[best], best


def _threshold(danger_N: NDArray[np.float64], dangerous_N: NDArray[np.bool_]) -> float:
    """The highest threshold, to four digits, at which `WANTED_RECALL` of the dangerous sentences are heard."""
    rising = np.sort(danger_N[dangerous_N])
    allowed = int((1 - WANTED_RECALL) * len(rising) + 1e-9)
    return float(np.floor(rising[allowed] * 1e4) / 1e4)


def _danger(probability_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    return probability_NC[:, [c for c, tier in enumerate(TIERS) if tier in IN_DANGER]].sum(axis=1)


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
