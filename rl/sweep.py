"""`attune sweep`: a search over a job's settings with Ray Tune. Each trial is the job's own run, in the trial's placement
group; it resumes from its own checkpoints, so that a trial that the machine failed goes on where it was.

    runs/NAME/ sweep.json recipe.toml events.jsonl table.csv table.md best.toml plots/
               trials/TRIAL/ (run directories)  TRIAL/ (Tune's own: TensorBoard, result.json, progress.csv)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.config import PpoRecipe
from rl.sft_config import SftRecipe
from rl.sweep_config import HELP, read_plan

if TYPE_CHECKING:
    from cluster.placement import Claim  # imports Ray


@dataclass(frozen=True)
class Job:
    """Something to search over: what it is told, how it runs, and what it asks of the cluster."""

    recipe: type
    run: Callable[[Any], Path]
    claims: Callable[[Any], list[Claim]]


def _run_ppo(recipe: PpoRecipe) -> Path:
    from rl.ppo import run  # loads torch and more: in the trial

    return run(recipe)


def _ppo_claims(recipe: PpoRecipe) -> list[Claim]:
    from cluster.placement import has_gpus
    from rl.layout import claims

    return claims(recipe, on_gpu=has_gpus())


def _run_sft(recipe: SftRecipe) -> Path:
    from rl.sft import run

    return run(recipe)


def _sft_claims(recipe: SftRecipe) -> list[Claim]:
    from rl.sft import claims

    return claims(recipe)


JOBS = {"ppo": Job(PpoRecipe, _run_ppo, _ppo_claims), "sft": Job(SftRecipe, _run_sft, _sft_claims)}


def sweep(words: Sequence[str]) -> int:
    """Run the search that `words` (what follows `attune sweep`) ask for; 0, or 1 when no trial finished or the search was
    interrupted.

    Raises SettingsError for whatever could not work, before anything heavy is loaded where that can be known.
    """
    if any(word in ("-h", "--help") for word in words):
        print(HELP)
        return 0
    plan = read_plan(words, {name: job.recipe for name, job in JOBS.items()})
    from rl.sweep_tune import search  # loads Ray

    return search(plan, JOBS[plan.base.job])
