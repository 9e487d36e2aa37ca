"""Tells of over-optimisation on simulated courses: seen where they are, not seen where there is only noise or a healthy rise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.figures import Ledger
from eval.heldout import Answers, as_long, read_answers
from eval.metrics import measure
from eval.over_optimisation import Kind, change, one_scale, seen, tells, worsened
from eval.pair import Pair
from eval.report_charts import MINUS
from eval.report_heldout import held_out_part, therapists, warnings
from eval.run_directory import read_run
from tests.test_report import page_of, write_json, write_lines

METRICS = (
    "rouge_l",
    "bleu",
    "distinct_2",
    "opening_rate",
    "duplicate_rate",
    "mean_words",
    "empty_rate",
    "safety/gated",
)
STOCK = "i hear that this is very hard for you and you are not alone in it at all"
Share = Callable[[float], float]  # of how far the run is, 0 to 1


def still(at: float) -> float:
    return 0.0


def course(
    path: Path,
    *,
    seed: int = 0,
    rise: Share = still,
    held_rise: Share | None = None,
    away: Share = still,
    stock: Share = still,
    kl: Share = lambda at: 2.0,
    words: Share = lambda at: 18.0,
    steps: int = 50,
    every: int = 10,
    prompts: int = 32,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A run directory: reward that rises by `rise` in training and `held_rise` (default: the same) on held-out prompts; the share
    of the reference's words that replies lose, `away`; the share of stock replies, `stock`. All else is noise."""
    rng = random.Random(seed)
    vocabulary = [f"w{k}" for k in range(400)]
    common = [1 / (k + 3) for k in range(400)]
    said = [" ".join(rng.choices(vocabulary, common, k=20)) for _ in range(prompts)]
    ease = [rng.gauss(0, 0.1) for _ in range(prompts)]
    (path / "rollouts").mkdir(parents=True)
    (path / "replies").mkdir()
    write_json(path / "settings.json", {"steps": steps, "ppo": {"kl_target": 6.0}, **(settings or {})})
    write_json(path / "status.json", {"state": "finished"})

    def reply(prompt: int, at: float) -> str:
        if rng.random() < stock(at):
            return STOCK
        count = max(round(rng.gauss(words(at), 3)), 1)
        echo = said[prompt].split()
        share = 0.35 * (1 - away(at))
        return " ".join(
            echo[k % 20] if rng.random() < share else rng.choices(vocabulary, common)[0] for k in range(count)
        )

    def evaluate(version: int) -> dict[str, float]:
        at = version / steps
        pairs = [Pair(f"valid/{n}#1", "", (), reply(n, at), said[n]) for n in range(prompts)]
        rewards = [0.4 + ease[n] + (held_rise or rise)(at) + rng.gauss(0, 0.12) for n in range(prompts)]
        figures = measure([name for name in METRICS if not name.startswith("safety/")], pairs)
        flagged = [float(rng.random() < 0.03) for _ in range(prompts)]
        figures["safety/gated"] = Ledger([p.prompt_id for p in pairs]).mean("safety/gated", flagged, rate=True)
        columns = {
            "prompt_id": [p.prompt_id for p in pairs], "history": [f"Client: it is number {n}" for n in range(prompts)],
            "reply": [p.reply for p in pairs], "reference": said, "reward": rewards,
            **{f"score/{name}": figure.values_N.tolist() for name, figure in figures.items()},
        }  # fmt: skip
        pq.write_table(pa.table(columns), path / "replies" / f"step-{version:06d}.parquet")
        return {
            "heldout/step": version, "heldout/reward": sum(rewards) / prompts,
            **{f"heldout/{name}": figure.value for name, figure in figures.items()},
        }  # fmt: skip

    rows = []
    for step in range(steps):
        at = step / steps
        rewards = [0.4 + rise(at) + rng.gauss(0, 0.15) for _ in range(32)]
        asked = [f"train/{n}#1" if n > 3 else "fixed/hopeless" if n else "crisis/active-01" for n in range(32)]
        pq.write_table(
            pa.table({"prompt_id": asked, "reward": rewards}), path / "rollouts" / f"step-{step:06d}.parquet"
        )
        row = {
            "step": step,
            "reward/mean": sum(rewards) / 32,
            "policy/kl": kl(at) + rng.gauss(0, 0.3),
            "rollout/length": 20.0,
        }
        if step % every == 0:
            row |= evaluate(step)
        if step + 1 == steps:
            row |= evaluate(steps)
        rows.append(row)
    write_lines(path / "metrics.jsonl", rows)
    return path


def kinds(path: Path) -> set[Kind]:
    """What was seen at any evaluation."""
    return {first.kind for first, _ in seen(read_run(path))}


# -- courses that are ill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_reward_up_and_likeness_down_is_told_with_its_numbers(seed: int, tmp_path: Path) -> None:
    """The sentence has both rewards and every figure that is the worse for it, each with its interval; it is a warning of the
    report."""
    run = course(tmp_path / "run", seed=seed, rise=lambda at: 0.3 * at, away=lambda at: at)
    (tell,) = [tell for tell in tells(read_run(run)) if tell.kind is Kind.OVER_OPTIMISED]
    assert tell.step == 50
    for part in ("After 50 updates, the reward is up in training (+0.", "on 32 held-out prompts (+0.", "rouge_l from 0.",
                 f", 99 % interval {MINUS}0.", "95 % interval +0.", "ppo.kl_coef"):  # fmt: skip
        assert part in tell.sentence, tell.sentence
    assert "distinct_2" not in tell.sentence and "mean_words" not in tell.sentence
    page = page_of(run)
    assert tell.sentence in page.text
    assert [attrs for tag, attrs in page.elements if attrs.get("class") == "warnings"]


def test_a_policy_that_collapses_is_told(tmp_path: Path) -> None:
    """Half of the replies become one text: over-optimised and collapsed, and when it was first seen."""
    run = course(tmp_path / "run", rise=lambda at: 0.3 * at, stock=lambda at: max(0.0, 1.5 * at - 0.5))
    assert {Kind.OVER_OPTIMISED, Kind.COLLAPSE} <= kinds(run)
    sentence = next(tell.sentence for tell in tells(read_run(run)) if tell.kind is Kind.COLLAPSE)
    assert "of 32 held-out replies" in sentence and "are the same text as another one (at first 0 %)" in sentence
    assert any("First seen after" in warning for warning in warnings(read_run(run)))


def test_a_collapse_needs_no_reward(tmp_path: Path) -> None:
    """Stereotyped replies are told though the reward stands still; the other tells are not."""
    assert kinds(course(tmp_path / "run", stock=lambda at: at)) == {Kind.COLLAPSE}


def test_a_reward_that_does_not_carry_over_is_told(tmp_path: Path) -> None:
    """Up in training by .4, held out by .05: the gap, with Newcombe's interval. Not where the two are on different scales."""
    knobs: dict[str, Any] = {"rise": lambda at: 0.4 * at, "held_rise": lambda at: 0.05 * at}
    run = course(tmp_path / "run", **knobs)
    (tell,) = [tell for tell in tells(read_run(run)) if tell.kind is Kind.GAP]
    assert "the gap grew by +0." in tell.sentence and "99 % interval +0." in tell.sentence
    for name, rewards in {
        "a": {"normalise": True},
        "b": {"normalise_terms": True},
        "c": {"experts": {"weight": 1.0}},
    }.items():
        other = course(tmp_path / name, settings={"rewards": rewards}, **knobs)
        assert Kind.GAP not in kinds(other) and not one_scale(read_run(other).settings)
    assert one_scale({}) and one_scale({"rewards": {"experts": {"weight": 0.0}, "normalise": False}})


def test_a_policy_far_from_the_reference_is_told(tmp_path: Path) -> None:
    """Over twice the target; without a target over a nat a token; a tell that is gone at the end is told as gone."""
    far: dict[str, Any] = {"kl": lambda at: 2 + 20 * at}
    run = course(tmp_path / "run", **far)
    assert kinds(run) == {Kind.KL}
    assert "over twice ppo.kl_target = 6" in tells(read_run(run))[0].sentence
    free = course(tmp_path / "free", settings={"ppo": {"kl_target": None}}, **far)
    assert "over one a token" in seen(read_run(free))[0][0].sentence
    assert kinds(course(tmp_path / "near", kl=lambda at: 11.0)) == set()
    back = course(tmp_path / "back", kl=lambda at: 16.0 if 0.3 < at < 0.7 else 2.0)
    (warning,) = warnings(read_run(back))
    assert warning.endswith("At the last evaluation this is not seen any more.")


# -- courses that are well -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100, 110))
def test_noise_alone_is_no_tell(seed: int, tmp_path: Path) -> None:
    """Nothing changes but by chance: nothing is told at any of the six evaluations. Of more such courses one in a hundred is
    told something (eval/over_optimisation.py)."""
    assert kinds(course(tmp_path / "run", seed=seed)) == set()


@pytest.mark.parametrize("seed", range(200, 210))
def test_a_healthy_rise_is_no_tell(seed: int, tmp_path: Path) -> None:
    """Reward up in training and held out, replies as good as they were: nothing is told, and the page has no warning."""
    run = course(tmp_path / "run", seed=seed, rise=lambda at: 0.3 * at)
    assert kinds(run) == set()
    if seed == 200:
        page = page_of(run)
        assert not [attrs for _, attrs in page.elements if attrs.get("class") == "warnings"]


def test_longer_replies_are_not_called_less_varied(tmp_path: Path) -> None:
    """Replies that grow from 8 to 30 words repeat more pairs of words by that alone: distinct-2 falls, and no tell says so."""
    run = course(tmp_path / "run", rise=lambda at: 0.3 * at, words=lambda at: 8 + 22 * at, away=lambda at: 0.0)
    first, last = (read_answers(run, step) for step in (0, 50))
    assert first is not None and last is not None
    plain = change(first.measured("distinct_2"), last.measured("distinct_2"), 0.99)
    assert plain.high < 0
    assert worsened("distinct_2", first, last, 0.99) == ""
    assert not any("distinct" in tell.sentence for tell in tells(read_run(run)))


def test_cut_to_the_same_lengths() -> None:
    """Every two replies have as many words; the texts are otherwise as they were, read as the rewards read them."""

    def said(*replies: str) -> Answers:
        pairs = tuple(Pair(f"p/{n}", "", (), reply, "r") for n, reply in enumerate(replies))
        return Answers(0, pairs, pd := [math.nan] * len(pairs), {"x": pd})  # type: ignore[arg-type]

    one, other = as_long(said("A, b c.", "", "q r"), said("x y", "word", "q r s"))
    assert (one.replies, other.replies) == (["a b", "", "q r"], ["x y", "", "q r"])


# -- what is missing -------------------------------------------------------------------------------------------------


def test_what_is_not_on_file_is_not_told(tmp_path: Path) -> None:
    """One evaluation, none, or answers that were lost or torn: no tell of them, the rest stands."""
    run = course(tmp_path / "run", rise=lambda at: 0.3 * at, stock=lambda at: at, kl=lambda at: 2 + 20 * at)
    assert {Kind.OVER_OPTIMISED, Kind.COLLAPSE, Kind.KL} <= {tell.kind for tell in tells(read_run(run))}
    torn = run / "replies" / "step-000050.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    assert {tell.kind for tell in tells(read_run(run))} == {Kind.KL}
    assert held_out_part(read_run(run)) is not None
    torn.unlink()
    (run / "replies" / "step-000000.parquet").unlink()
    assert {tell.kind for tell in tells(read_run(run))} == {Kind.KL}
    assert page_of(run).open == []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[0] + "\n")
    assert tells(read_run(run)) == [] and seen(read_run(run)) == []
    write_lines(run / "metrics.jsonl", [{"step": 0, "reward/mean": 0.5}])
    assert tells(read_run(run)) == [] and held_out_part(read_run(run)) is None


# -- the report ------------------------------------------------------------------------------------------------------


def test_the_report_draws_every_held_out_figure_with_its_interval(tmp_path: Path) -> None:
    """Reward in training and held out on one axis; one chart per metric, with a band and the therapists' own figure."""
    run = course(tmp_path / "run", rise=lambda at: 0.3 * at)
    page = page_of(run)
    charts = [attrs["aria-label"] for _, attrs in page.elements if attrs.get("role") == "img"]
    both = [alt for alt in charts if "Reward in training and held out" in alt]
    assert len(both) == 2 and all("training (reward" in alt and "held-out (reward" in alt for alt in both)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in METRICS:
        (alt,) = [alt for alt in charts if f"Held-out {name}." in alt]
        last = rows[-1][f"heldout/{name}"]
        assert "at step 50" in alt and (f"{last:.3f}".rstrip("0").rstrip(".") in alt or last == 0), alt
    drawn = read_run(run)
    part = held_out_part(drawn)
    assert part is not None and "the same 32 prompts of the valid split" in part.told
    assert all("band" in figure.svg for figure in part.figures)
    answers = read_answers(run, 50)
    assert answers is not None
    own = therapists(answers, METRICS)
    assert own["mean_words"] == 20 and "rouge_l" not in own and "safety/gated" not in own
    apart = course(tmp_path / "apart", settings={"rewards": {"normalise": True}})
    assert "on a scale of its own" in page_of(apart).text
