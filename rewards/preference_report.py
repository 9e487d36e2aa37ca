"""What a preference model reports of itself on held-out replies, beside models that know less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rewards.preference_ensemble import Ensemble, Floats
from rewards.preference_features import BLIND, LENGTH, SCALARS, Sight, is_scalar
from rewards.preference_measures import Held, Interval, Measures, calibration_bins, spearman
from rewards.preference_ridge import Candidate, fit_ensemble, scores_of, seen
from rewards.rated_replies import RatedReply, RatedSplits

_FEWEST_GROUPS = 5  # below, a bootstrap over groups says nothing
_HISTORIES, _ANSWERS = 200, 20  # of `sway`
_PARTS = 3  # of the held-out replies, by the ensemble's spread
BASELINES: Mapping[str, tuple[str, ...]] = {"length": LENGTH, "blind": BLIND}


@dataclass(frozen=True)
class OneProblem:
    """The held-out replies of one problem type; `spearman` is None with fewer than five dialogues."""

    problem: str
    replies: int
    groups: int
    spearman: Interval | None
    error: float


@dataclass(frozen=True)
class SpreadPart:
    """A third of the held-out replies, by rising spread of the members."""

    replies: int
    std: float
    error: float


@dataclass(frozen=True)
class Report:
    """Everything that is said of a fitted ensemble.

    `arms` are the model (its mean), what it pays with beta = 1 (`cautious`: mean - std), and baselines: `length` (the
    reply's length alone) and `blind` (what the client said and the turn's number, without the reply), both fitted, chosen
    and calibrated in the same way, and `constant` (the mean rating of the valid split). `ahead` is the model's Spearman
    correlation minus a baseline's, on the same samples of groups. `doubt` is Spearman's correlation of the members' spread
    and |prediction - rating|: above 0, the model knows where it errs. `pull` is what one standard deviation of each plain
    number adds to the prediction. `sway` is the standard deviation of the predictions for the same history: 200 held-out
    histories (or all) are each answered with the same 20 held-out replies, drawn by the seed.
    """

    arms: Mapping[str, Measures]
    ahead: Mapping[str, Interval]
    problems: tuple[OneProblem, ...]
    doubt: Interval
    doubt_parts: tuple[SpreadPart, ...]
    bins: tuple[tuple[float, float, int], ...]
    predicted: tuple[float, float, float]
    """5 %, 50 % and 95 % quantile of the predictions."""
    sway: float
    pull: Mapping[str, float]
    tried: tuple[Candidate, ...]
    replies: Mapping[str, int]
    groups: Mapping[str, int]
    mean_score: Mapping[str, float]

    def beats(self, baseline: str) -> bool:
        """Whether the interval of the difference lies above 0."""
        return self.ahead[baseline].low > 0

    def as_json(self) -> dict[str, Any]:
        """The report as JSON objects."""
        beats = {f"beats_{name}": self.beats(name) for name in self.ahead}
        return {**beats, **asdict(self)}


def report_on(
    ensemble: Ensemble,
    tried: Sequence[Candidate],
    splits: RatedSplits,
    sight: Sight,
    *,
    members: int,
    seed: int,
    draws: int,
    say: Callable[[str], None],
) -> Report:
    """Measure `ensemble` on the test split, which nothing was fitted to or chosen by."""
    test = splits.test
    score_N = scores_of(test)
    held = Held(
        score_N,
        [rated.group for rated in test],
        np.array([len(rated.history) for rated in test], dtype=np.float64),
        draws=draws,
        seed=seed,
    )
    mean_N, std_N = ensemble.predict(seen(sight, ensemble.features, test))
    predictions = {"model": mean_N, "cautious": mean_N - std_N}
    for name, names in BASELINES.items():
        fitted, _ = fit_ensemble(splits.train, splits.valid, sight, {name: names}, members=members, seed=seed)
        predictions[name], _ = fitted.predict(seen(sight, names, test))
    predictions["constant"] = np.full(len(test), scores_of(splits.valid).mean())
    say(f"  measuring {', '.join(predictions)} on {len(test)} held-out replies")
    error_N = np.abs(mean_N - score_N)
    order = np.array_split(np.argsort(std_N, kind="stable"), _PARTS)
    return Report(
        arms={name: held.measures(prediction_N) for name, prediction_N in predictions.items()},
        ahead={name: _ahead(held, mean_N, predictions[name]) for name in BASELINES},
        problems=_by_problem(held, test, mean_N),
        doubt=held.interval(lambda rows: spearman(std_N[rows], error_N[rows])),
        doubt_parts=tuple(
            SpreadPart(len(p), float(std_N[p].mean()), float(error_N[p].mean())) for p in order if len(p)
        ),
        bins=tuple(calibration_bins(mean_N, score_N)),
        predicted=tuple(np.quantile(mean_N, [0.05, 0.5, 0.95]).tolist()),
        sway=_sway(ensemble, sight, test, seed),
        pull=_pull(ensemble, sight.width),
        tried=tuple(tried),
        replies={name: len(split) for name, split in vars(splits).items()},
        groups={name: len({rated.group for rated in split}) for name, split in vars(splits).items()},
        mean_score={name: float(scores_of(split).mean()) for name, split in vars(splits).items()},
    )


def _ahead(held: Held, one_N: Floats, other_N: Floats) -> Interval:
    truth_N = held.score_N
    return held.interval(lambda rows: spearman(one_N[rows], truth_N[rows]) - spearman(other_N[rows], truth_N[rows]))


def _by_problem(held: Held, test: Sequence[RatedReply], mean_N: Floats) -> tuple[OneProblem, ...]:
    problem_N = np.array([rated.problem or "not stated" for rated in test])
    found = []
    for problem in np.unique(problem_N).tolist():
        rows = np.flatnonzero(problem_N == problem)
        groups = len(np.unique(held.group_N[rows]))
        among = None
        if groups >= _FEWEST_GROUPS:
            among = held.interval(lambda chosen: spearman(mean_N[chosen], held.score_N[chosen]), rows)
        error = float(np.abs(mean_N[rows] - held.score_N[rows]).mean())
        found.append(OneProblem(problem, len(rows), groups, among, error))
    return tuple(sorted(found, key=lambda one: (-one.replies, one.problem)))


def _sway(ensemble: Ensemble, sight: Sight, test: Sequence[RatedReply], seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(test)).tolist()
    asked, answers = order[:_HISTORIES], [test[at].reply for at in order[-_ANSWERS:]]
    crossed = [(test[at].history, answer) for at in asked for answer in answers]
    mean_N, _ = ensemble.predict(sight.matrix(ensemble.features, crossed))
    return float(mean_N.reshape(len(asked), len(answers)).std(axis=1).mean())


def _pull(ensemble: Ensemble, width: int) -> dict[str, float]:
    """Per plain number: mean weight x slope, in ratings per standard deviation."""
    scalar_F = is_scalar(ensemble.features, width)
    names = [name for name in ensemble.features if name in SCALARS]
    worth = np.sqrt(width) if not scalar_F.all() else 1.0
    weights = ensemble.weights.mean(axis=0)[scalar_F] * worth * ensemble.calibration[0]
    return dict(zip(names, weights.tolist(), strict=True))
