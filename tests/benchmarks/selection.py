"""What a rating is worth, by which replies are rated: chosen as the expert loop does, at random, or the longest first.

Simulation: a pool of replies with a known true quality, a panel that errs about it, a surrogate that is fitted to what they say.
README.md beside this file says how to read it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.config import EncoderConfig
from rewards.experts.selection import choose
from rewards.experts.simulated_quality import true_quality
from rewards.experts.simulated_raters import careful, judge
from rewards.experts.surrogate import Surrogate
from rewards.preference_features import Answer, Sight, texts_of
from rewards.preference_measures import spearman
from rewards.rated_replies import RatedReply
from rollout.config import CorpusConfig
from rollout.corpora import load
from rollout.types import Speaker

A_ROUND, ROUNDS = 16, 10
RANDOM_SHARE = 0.3
_VECTORS: dict[str, NDArray[np.float64]] = {}  # the pool is embedded once for all fits


class Remembering(Surrogate):
    """A surrogate that embeds every text of the pool once."""

    def _look(self, answers: Sequence[Answer]) -> Sight:
        new = [text for text in dict.fromkeys(texts_of(answers)) if text not in _VECTORS]
        if new:
            _VECTORS.update(zip(new, self._encoder.embed(new).double().numpy(), strict=True))
            self._encoder.forget()
        return Sight(_VECTORS, self._encoder.width)


def pool(seed: int) -> list[Answer]:
    """Replies as a policy gives them in the course of a run: therapists' own, of another client, cut off, word salad."""
    rng = random.Random(seed)
    dialogues = load(CorpusConfig()).train
    turns = [
        (d.turns[:i], turn.text)
        for d in dialogues
        for i, turn in enumerate(d.turns)
        if i and turn.speaker is Speaker.THERAPIST
    ]
    words = [word for _, text in turns for word in text.split()]
    answers = []
    for history, own in rng.sample(turns, min(len(turns), 300)):
        _, other = rng.choice(turns)
        salad = " ".join(rng.choices(words, k=rng.randint(4, 40)))
        answers += [(history, text) for text in (own, other, " ".join(own.split()[: rng.randint(2, 6)]), salad)]
    return answers


def learned(answers: Sequence[Answer], truth: Sequence[float], pick: str, seed: int) -> list[tuple[int, float, float]]:
    """(ratings, RMSE, Spearman on replies that nobody rates) after each round of one strategy."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(answers))
    unseen, open_ = order[: len(answers) // 4].tolist(), order[len(answers) // 4 :].tolist()
    surrogate = Remembering(EncoderConfig(), members=10, seed=seed)
    raters, rated = careful(4, seed), list[RatedReply]()
    found = []
    for number in range(ROUNDS):
        shown = open_[:64]  # the replies of a step
        guesses = surrogate.guess([answers[i] for i in shown])
        if pick == "chosen":
            vectors = np.stack([guess.vector for guess in guesses])
            choice = choose([guess.std for guess in guesses], vectors, A_ROUND, RANDOM_SHARE, seed * 100 + number)
            taken = [shown[at] for at in choice.chosen]
        elif pick == "random":
            taken = [shown[at] for at in rng.choice(len(shown), A_ROUND, replace=False)]
        else:
            taken = sorted(shown, key=lambda i: -len(answers[i][1]))[:A_ROUND]
        for i in taken:
            history, text = answers[i]
            rater = raters[len(rated) % len(raters)]
            said = judge(rater, true_quality(history, text), history, text, nth=len(rated))
            rated.append(RatedReply(f"{i}", tuple(history), text, float(said["overall"])))
        open_ = open_[64:]
        surrogate.learn(rated)
        guessed = np.array([guess.mean for guess in surrogate.guess([answers[i] for i in unseen])])
        right = np.array([truth[i] for i in unseen])
        found.append((len(rated), float(np.sqrt(np.mean((guessed - right) ** 2))), spearman(guessed, right)))
    return found


def main() -> None:
    """The table, as JSON lines: strategy, ratings, mean and 95 % interval over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    seeds = parser.parse_args().seeds
    curves: dict[str, list[list[tuple[int, float, float]]]] = {name: [] for name in ("chosen", "random", "longest")}
    for seed in range(seeds):
        answers = pool(seed)
        truth = [true_quality(history, text).overall for history, text in answers]
        for name, done in curves.items():
            done.append(learned(answers, truth, name, seed))
    for at in (1, 4, ROUNDS - 1):
        for name, done in curves.items():
            row = {"strategy": name, "ratings": done[0][at][0]}
            for column, what in ((1, "rmse"), (2, "spearman")):
                values = np.array([curve[at][column] for curve in done])
                error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
                row |= {what: round(float(values.mean()), 4), f"{what}_95": round(float(error), 4)}
            print(json.dumps(row), flush=True)
    for name in ("random", "longest"):  # paired over seeds
        gain = np.array([o[-1][2] - c[-1][2] for o, c in zip(curves[name], curves["chosen"], strict=True)])
        error = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        print(
            json.dumps(
                {"spearman of chosen less": name, "mean": round(float(-gain.mean()), 4), "95": round(float(error), 4)}
            )
        )


if __name__ == "__main__":
    main()
