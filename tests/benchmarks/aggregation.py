"""How far an aggregated score is from the known truth when raters differ as clinicians do (one mean of 1.7, another of 4.0 of 6):
the plain mean, per-rater standardised, crossed random effects. README.md beside this file says how to read it."""

from __future__ import annotations

import argparse
import json

import numpy as np

from rewards.experts.aggregation import mean, random_effects, standardised
from rewards.experts.rating_rows import Row
from rewards.preference_measures import spearman

METHODS = {"mean": mean, "standardised": standardised, "random effects": random_effects}
DESIGNS = {  # raters, items, fewest and most ratings an item
    "4 raters, 60 items, 1 to 3 ratings": (4, 60, 1, 3),
    "4 raters, 60 items, 1 rating": (4, 60, 1, 1),
    "4 raters, 60 items, all rate all": (4, 60, 4, 4),
    "8 raters, 300 items, 1 to 3 ratings": (8, 300, 1, 3),
}
BIAS, QUALITY, NOISE = 0.23, 0.12, 0.15  # half the range of the raters' means; std of the items; std of a rating


def simulated(raters: int, items: int, fewest: int, most: int, seed: int) -> tuple[list[Row], np.ndarray]:
    """Ratings and the items' true quality."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0.5, QUALITY, items).clip(0, 1)
    bias = np.linspace(-BIAS, BIAS, raters)
    rows = []
    for item in range(items):
        for rater in rng.choice(raters, rng.integers(fewest, most + 1), replace=False):
            said = truth[item] + bias[rater] + rng.normal(0, NOISE)
            rows.append(Row(f"i{item}", f"r{rater}", float(np.clip(said, 0, 1))))
    return rows, truth


def main() -> None:
    """A JSON line per design and method: RMSE and rank correlation with the truth, with 95 % intervals over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = parser.parse_args().seeds
    for design, (raters, items, fewest, most) in DESIGNS.items():
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
        for seed in range(seeds):
            rows, truth = simulated(raters, items, fewest, most, seed)
            for name, method in METHODS.items():
                told = method(rows).items
                values = np.array([told[f"i{item}"].value for item in range(items)])
                found[name].append((float(np.sqrt(np.mean((values - truth) ** 2))), spearman(values, truth)))
        for name, pairs in found.items():
            figures = np.array(pairs)
            error = 1.96 * figures.std(axis=0, ddof=1) / np.sqrt(seeds)
            row = {
                "rmse": figures[:, 0].mean(),
                "rmse_95": error[0],
                "spearman": figures[:, 1].mean(),
                "spearman_95": error[1],
            }
            print(json.dumps({"design": design, "method": name, **{k: round(float(v), 4) for k, v in row.items()}}))


if __name__ == "__main__":
    main()
