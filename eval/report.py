"""The page a run leaves behind: one HTML file with the curves, the replies and the provenance, and nothing to load.

`write_report(run)` may be called after any step, and on a run that failed: it tells what is there.
"""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from eval.report_charts import number
from eval.report_experts import experts_part
from eval.report_figures import part_figures, reward_figure, training_figures, warmup_figures
from eval.report_heldout import held_out_part, warnings
from eval.report_replies import extreme_replies, progressions
from eval.report_safety import safety_by_tier
from eval.report_sft import supervised_page
from eval.report_summary import caution, key_numbers, reward_change, step_rewards, summary
from eval.run_directory import Run, flatten, read_run

NOTICE = (
    "Research software. Not a substitute for care.",
    "The replies on this page were written by a language model in training and approved by nobody; some may be wrong, "
    "hurtful or unsafe. If you, or somebody near you, may be in danger, call your local emergency number; in the "
    "United States, call or text 988 at any hour.",
)


def write_report(run: Path) -> Path:
    """Write `run/report.html` from what the run directory holds now, and return its path.

    The file is replaced in one move, so a reader never sees half a page. Raises `ValueError` when `run` is no
    directory, or a JSON document in it is not a JSON object.
    """
    page = render(read_run(run))
    target = run / "report.html"
    draft = run / f"report.html.{os.getpid()}.tmp"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)
    return target


def render(run: Run) -> str:
    """Return the page of `run`. Every text of the run is escaped; nothing in the page is fetched or executed."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    template, own = ("report_sft", supervised_page(run)) if run.fine_tunes else ("report_page", ppo_page(run))
    unread = run.metrics.unreadable + run.warmup.unreadable
    return environment.get_template(f"{template}.html.j2").render(
        run=run,
        notice=NOTICE,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        warmup=warmup_figures(run.warmup),
        tables=(("Settings", list(flatten(run.settings))), ("Provenance", list(flatten(run.provenance)))),
        numbers=[(name, run.metrics.series(name)[:, 1]) for name in run.metrics.names],
        unreadable=(("log lines", unread), *own.pop("unreadable")),
        **own,
    )


def ppo_page(run: Run) -> dict[str, Any]:
    """Return what `report_page.html.j2` tells of a PPO run."""
    keys, torn = run.replies()
    change = reward_change(step_rewards(run.metrics, keys))
    stories, extremes = progressions(run, keys), extreme_replies(run, keys)
    shown = [reply for story in stories for _, reply in story.replies] + [
        r for group in extremes for r in group.replies
    ]
    parts = [value for reply in shown for value in reply.parts.values() if math.isfinite(value)]
    return {
        "summary": summary(run, change),
        "warnings": warnings(run),
        "caution": caution(run, keys),
        "tiles": key_numbers(run, change, keys),
        "reward": reward_figure(run.metrics, change),
        "parts": part_figures(run.metrics),
        "held_out": held_out_part(run),
        "training": training_figures(run),
        "tiers": safety_by_tier(run.metrics),
        "experts": experts_part(run),
        "stories": stories,
        "extremes": extremes,
        "part_range": (min([0.0, *parts]), max([1.0, *parts])),
        "unreadable": (("rollout files", torn),),
    }
