"""`attune fit crisis`: the head that hears danger, its thresholds, and what rules and head hear of held-out sentences.

Axes: N texts, F features, C tiers; S parts of texts (`rewards.crisis_head.spoken`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier, crisis_tier, gravest
from rewards.crisis_head import DANGER, Thresholds, gravest_spoken, joined, spoken, tiers_of
from rewards.crisis_measures import Row, belief, danger_tables, dangerous, heard, hearing, in_context
from rewards.danger import IN_DANGER
from rewards.danger_kernel import fit_kernel, fit_platt, platt
from rewards.encoder import SentenceEncoder
from rewards.fit import base_card
from rewards.fit_config import FitConfig
from rewards.head_features import Features
from rewards.head_folder import Pages, head_files, interval, score_tables
from rewards.head_scores import scores, wilson
from rewards.heads import encoder_vector, softmax
from rewards.labelled import OWN, crisis_rows, goemotions_comments
from rewards.softmax_regression import STRENGTHS, fit, nll, temperature
from rollout.config import CorpusConfig
from rollout.corpora import load as load_corpus
from rollout.corpora.corpus import CorpusError, fingerprints
from rollout.types import Speaker

SENTENCES = Path(__file__).parent / "crisis_sentences"
TRAIN, HELD_OUT = "train.tsv", "held_out.tsv"
WANTED_RECALL = 0.95
MOST_ORDINARY = 0.005  # share of ordinary talk of which the head may be sure
ORDINARY = 10_000  # comments that are drawn from `ordinary`
FOLDS = 5
TIERS = tuple(Tier)
MODELS = {"layer": "the layer alone", "joined": "kernel and layer joined"}
_TALK = "Apache-2.0 (GoEmotions, its authors: ordinary talk)"

Real = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Talk:
    """What a head is fitted to: labelled sentences, and `ordinary` talk, which counts as harmless."""

    train: Sequence[Row]
    ordinary: Sequence[str]

    @cached_property
    def texts(self) -> list[str]:
        return [*(text for text, _, _ in self.train), *self.ordinary]

    @cached_property
    def danger_N(self) -> NDArray[np.bool_]:
        return np.concatenate([dangerous(self.train), np.zeros(len(self.ordinary), dtype=bool)])

    @cached_property
    def parts(self) -> list[list[str]]:
        return [spoken(text) for text in self.texts]

    def lessons(self, chosen: Sequence[int] | NDArray[np.int64]) -> tuple[list[str], NDArray[np.bool_]]:
        """What the kernel is shown of the chosen texts: dangerous ones whole (which part has the danger is not known),
        of harmless ones every part as well."""
        shown = [
            (part, bool(self.danger_N[i]))
            for i in chosen
            for part in dict.fromkeys([self.texts[i], *([] if self.danger_N[i] else self.parts[i])])
        ]
        return [part for part, _ in shown], np.array([danger for _, danger in shown])


@dataclass(frozen=True)
class _Unseen:
    """What machines that had not seen a text's fold say: the kernel's margin of each text's parts, and of the training
    sentences the layer's logits, whole and part by part, at the best penalty `strength`."""

    margins: list[Real]
    whole_NC: Real
    parts: list[Real]
    strength: float


def fit_crisis(data: Path | None, config: FitConfig, say: Say) -> dict[str, bytes]:
    """The files of a crisis head, fitted to `data`/train.tsv and measured on `data`/held_out.tsv (None: the shipped ones).

    Ordinary talk counts as harmless beside the training sentences: the clients' turns of the shipped corpus's train split, and
    comments of `config.ordinary`. Probability and thresholds are chosen on texts that were judged by a machine that had not
    seen their fold: by likelihood; so that danger is missed in at most 5 % of the dangerous training sentences; and so that
    the head is sure of danger in at most 0.5 % of ordinary talk.
    """
    folder = data or SENTENCES
    train, held = (crisis_rows(folder / name, TIERS) for name in (TRAIN, HELD_OUT))
    _check(train, held)
    ordinary, sources = ordinary_talk(config, known={text for text, _, _ in [*train, *held]})
    talk = _Talk(train, ordinary)
    say(f"train {len(train)} sentences and {len(ordinary)} of ordinary talk, held out {len(held)}")
    held_texts, danger_N = [text for text, _, _ in held], dangerous(held)
    contexts = in_context([text for text, _, _ in itertools.compress(held, danger_N)], neutral_sentences(), config.seed)
    encoder = SentenceEncoder(config.encoder)
    read = [*held_texts, *itertools.chain(*contexts.values())]
    every = [*talk.texts, *itertools.chain(*talk.parts), *held_texts, *(part for text in read for part in spoken(text))]
    features = Features(encoder, every, say)

    y_N = _numbers(train)
    unseen = _unseen(talk, features, y_N, config.seed, say)
    margin_N = np.array([margin_S.max() for margin_S in unseen.margins])
    slope, offset = fit_platt(margin_N, talk.danger_N)
    warmth = temperature(unseen.whole_NC, y_N)
    lessons, labels = talk.lessons(range(len(talk.texts)))
    kernel = replace(fit_kernel(features.of(lessons), labels, config.seed), slope=slope, offset=offset)
    final = fit(features.of([text for text, _, _ in train]), y_N, unseen.strength)

    unseen_N = platt(margin_N, slope, offset)
    alarm = _alarm(unseen_N[talk.danger_N])
    thresholds = Thresholds(alarm, max(alarm, _sure(unseen_N[len(train) :])))
    sure = Thresholds(thresholds.sure, thresholds.sure)

    def joined_of(texts: Sequence[str]) -> Real:
        x_NF = features.of(texts)
        return joined(kernel.probabilities(x_NF), softmax(final.logits(x_NF) / warmth), TIERS)

    def heads(texts: Sequence[str], at: Thresholds) -> list[Tier]:
        return gravest_spoken(texts, lambda parts: tiers_of(joined_of(parts), TIERS, at))

    def unseen_tiers(at: Thresholds) -> list[Tier]:
        parts = zip(unseen.margins, unseen.parts, strict=False)  # margins of ordinary talk come after
        shares = (joined(platt(m_S, slope, offset), softmax(q_SC / warmth), TIERS) for m_S, q_SC in parts)
        return [gravest(tiers_of(share_SC, TIERS, at)) for share_SC in shares]

    layer_NC, joined_NC = softmax(final.logits(features.of(held_texts))), joined_of(held_texts)
    majority = Counter(y_N.tolist()).most_common(1)[0][0]
    found = scores(
        layer_NC, joined_NC, _numbers(held), TIERS,
        majority=majority, resamples=config.resamples, seed=config.seed, models=("layer", "joined"),
    )  # fmt: skip
    found["unseen_train"] = {
        name: {
            **hearing(train, unseen_tiers(at)),
            "ordinary": wilson(unseen_N[len(train) :] >= at.alarm) if ordinary else None,
        }
        for name, at in (("heard", thresholds), ("sure", sure))
    }
    rules = [crisis_tier(text) for text in held_texts]
    ears = {"head": heads(held_texts, thresholds), "head, where sure": heads(held_texts, sure)}
    both = {
        name.replace("head", "rules or head"): [gravest(pair) for pair in zip(rules, tiers, strict=True)]
        for name, tiers in ears.items()
    }
    found["danger"] = {name: hearing(held, tiers) for name, tiers in {"rules": rules, **ears, **both}.items()}
    found["in_context"] = {
        where: {name: wilson(heard(heads(texts, at))) for name, at in (("heard", thresholds), ("sure", sure))}
        for where, texts in contexts.items()
    }
    held_N = np.array([kernel.probabilities(features.of(spoken(text))).max() for text in held_texts])
    found["belief"] = belief(held_N, danger_N, float(talk.danger_N.mean()))
    for name, said in [*found["danger"].items(), *found["in_context"].items()]:
        say(f"  {name}: " + ", ".join(f"{what} {interval(share)}" for what, share in said.items() if "value" in share))
    card = base_card("crisis", TIERS, encoder, config) | {
        "command": " ".join([
            "attune fit crisis",
            *(["--data FOLDER"] if data else []),
            *(["--ordinary GOEMOTIONS"] if config.ordinary else []),
            "--out FOLDER",
        ]),
        "strength": unseen.strength,
        "temperature": warmth,
        "threshold": thresholds.alarm,
        "sure": thresholds.sure,
        "chosen": f"Danger is told by a kernel machine ({len(kernel.weight_S)} support vectors on {len(kernel.components_KF)} "
        f"principal components, gamma {kernel.gamma:g}), the layer tells which. A text is read by its sentences and by each two "
        f"neighbours; the gravest counts. Probabilities and thresholds chosen on texts in {FOLDS} folds, each judged by a "
        f"machine that had not seen it. Threshold {thresholds.alarm:g} on the probability of danger: recall {WANTED_RECALL} of "
        f"the dangerous training sentences; it raises tier passive (or other) at most. Sure from {thresholds.sure:g} on: at "
        f"most {MOST_ORDINARY:.1%} of ordinary talk (a comment, a client's turn) gets there; it raises any tier. Rewards hear "
        "the head only where it is sure, the guard from the threshold on.",
        "data": {
            "files": fingerprints([folder / TRAIN, folder / HELD_OUT], folder) | sources,
            "licence": "; ".join([
                OWN if data else "Apache-2.0 (written for this project)", *([_TALK] if sources else [])
            ]),
            "split": "files train, held_out",
            "rows": {"train": len(train), "ordinary talk": len(ordinary), "held out": len(held)},
            "left_out": {},
        },
        "scores": found,
    }  # fmt: skip
    pages = Pages(card, [*danger_tables(found), *score_tables(found, MODELS)])
    files = head_files(final, encoder_vector(encoder), pages, layer_NC, joined_NC, _numbers(held), MODELS)
    return files | {DANGER: kernel.to_bytes()}


def ordinary_talk(config: FitConfig, known: set[str]) -> tuple[list[str], dict[str, str]]:
    """What people say when they are in no danger, and which files decide what; what the rules take for danger is left out."""
    own = set(_client_turns("train", ("none", "distress")))
    comments, files = list[str](), dict[str, str]()
    if config.ordinary:
        comments, read = goemotions_comments(Path(config.ordinary).expanduser())
        files = {f"ordinary/{name}": sha for name, sha in read.items()}
    drawn = sorted(set(comments), key=lambda text: hashlib.sha256(f"{config.seed}/{text}".encode()).digest())[:ORDINARY]
    talk = dict.fromkeys([*sorted(own), *drawn])
    return [text for text in talk if text not in known and spoken(text) and crisis_tier(text) not in IN_DANGER], files


def neutral_sentences() -> list[str]:
    """Sentences of the shipped corpus's clients in its test split, where they show nothing."""
    said = {part for turn in _client_turns("test", ("none",)) for part in spoken(turn)}
    return sorted(part for part in said if len(spoken(part)) == 1)


def _client_turns(split: str, tiers: Sequence[str]) -> Iterator[str]:
    for turn in (turn for dialogue in load_corpus(CorpusConfig()).splits[split] for turn in dialogue.turns):
        if turn.speaker is Speaker.CLIENT and turn.labels.get("tier", "none") in tiers:
            yield turn.text


def _unseen(talk: _Talk, features: Features, y_N: NDArray[np.int64], seed: int, say: Say) -> _Unseen:
    from sklearn.model_selection import StratifiedKFold

    count = len(y_N)
    margins = [np.empty(0)] * len(talk.texts)
    whole = {strength: np.zeros((count, len(TIERS))) for strength in STRENGTHS}
    parts = {strength: [np.empty(0)] * count for strength in STRENGTHS}
    kind_N = np.concatenate([y_N, np.full(len(talk.ordinary), len(TIERS))])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (seen, left) in enumerate(folds.split(kind_N, kind_N), start=1):
        lessons, danger_N = talk.lessons(seen)
        kernel = fit_kernel(features.of(lessons), danger_N, seed)
        for i in left:
            margins[i] = kernel.margins(features.of(talk.parts[i]))
        seen, left = (part[part < count] for part in (seen, left))
        seen_NF, left_NF = (features.of([talk.texts[i] for i in chosen]) for chosen in (seen, left))
        for strength in STRENGTHS:
            layer = fit(seen_NF, y_N[seen], strength)
            whole[strength][left] = layer.logits(left_NF)
            for i in left:
                parts[strength][i] = layer.logits(features.of(talk.parts[i]))
        say(f"  fold {number} of {FOLDS} fitted")
    best = min(STRENGTHS, key=lambda strength: (round(nll(whole[strength], y_N), 4), strength))
    say(f"  strength {best:g}")
    return _Unseen(margins, whole[best], parts[best], best)


def _alarm(dangerous_N: Real) -> float:
    """The highest threshold, to four digits, at which `WANTED_RECALL` of dangerous sentences are heard."""
    rising = np.sort(dangerous_N)
    allowed = int((1 - WANTED_RECALL) * len(rising) + 1e-9)
    return float(np.floor(rising[allowed] * 1e4) / 1e4)


def _sure(ordinary_N: Real) -> float:
    """The lowest threshold, to four digits, that at most `MOST_ORDINARY` of ordinary talk reaches."""
    falling = np.sort(ordinary_N)[::-1]
    first_out = falling[int(MOST_ORDINARY * len(falling) + 1e-9)]
    return min(1.0, round(float(np.floor(first_out * 1e4) + 1) / 1e4, 4))


def _numbers(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([TIERS.index(Tier(tier)) for _, tier, _ in rows])


def _check(train: Sequence[Row], held: Sequence[Row]) -> None:
    count = Counter(tier for _, tier, _ in train)
    if few := [str(tier) for tier in TIERS if count[tier] < FOLDS]:
        raise CorpusError(f"{TRAIN} must hold {FOLDS} sentences of every tier, {few[0]} has {count[few[0]]}; add some")
    if wordless := [text for text, _, _ in [*train, *held] if not spoken(text)]:
        raise CorpusError(f"every text must have a word, {wordless[0]!r} has none; remove it")
    if not 0 < dangerous(held).sum() < len(held):
        raise CorpusError(f"{HELD_OUT} must hold dangerous and harmless sentences, is all of one sort; add the other")
    if both := sorted({text for text, _, _ in train} & {text for text, _, _ in held}):
        raise CorpusError(f"{HELD_OUT} may share no sentence with {TRAIN}, {both[0]!r} is in both; remove it from one")
