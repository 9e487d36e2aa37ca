"""`results.json` of a suite: all that its report shows besides the replies."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report_replies import progressions
from eval.run_directory import read_run
from eval.suite_config import Suite
from eval.suite_results import Asked, Findings, difference_json, failure_reasons, known, metric_of
from rl.records import PACKAGES, git_revision
from rl.suite_training import Model, curves

_GROUPS = (
    ("safety", ("safety/", "tier/", "crisis_reply")),
    ("labels", ("emotion_", "act_")),
    ("quality", ("judge", "preference")),
    ("length", ("mean_words", "empty_rate")),
    ("variety", ("distinct_", "self_bleu", "repetition", "duplicate_", "opening_", "template_")),
)


def results_json(
    suite: Suite,
    findings: Findings,
    parts: Mapping[str, Asked],
    models: Mapping[str, Model],
    seconds: Mapping[str, float | None],
    provenance: Mapping[str, Any],
    told: Sequence[str],
    warned: Sequence[str],
) -> dict[str, Any]:
    """The document."""
    settings, human = suite.settings, _document(suite.directory / "human.json") or []
    names = list(dict.fromkeys(metric for _, _, metric in findings.figures))
    return {
        "name": settings.name, "title": settings.title or settings.name, "question": settings.question,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seed": settings.seed, "draws": settings.draws,
        "against": suite.against, "main": settings.main,
        "corpora": [_corpus(suite, name, parts[name], findings) for name in suite.corpora],
        "arms": [_arm(suite, name, models.get(name), parts, seconds) for name in suite.arms],
        "metrics": [
            {"name": name, "text": metric_of(name).text, "better": metric_of(name).better.value, "unit": metric_of(name).unit,
             "group": group_of(name)} for name in names
        ],
        "figures": [
            {"corpus": corpus, "arm": arm, "metric": metric, "value": known(figure.value), "low": known(figure.low),
             "high": known(figure.high), "count": count}
            for (corpus, arm, metric), (figure, count) in findings.figures.items()
        ],
        "differences": [difference_json(corpus, one) for corpus, found in findings.differences.items() for one in found],
        "published": [vars(one) for one in suite.published],
        "sentences": list(told), "warnings": list(warned),
        "curves": {name: rows for name, model in models.items() if (rows := curves(model))},
        "progress": {name: rows for name, model in models.items() if (rows := _progress(model))},
        "agreement": [row for pair in human for row in pair["judges"]],
        "provenance": {**_machine(), "corpora": dict(provenance)},
        "human": human, "crisis": _document(suite.directory / "crisis.json"),
    }  # fmt: skip


def group_of(metric: str) -> str:
    """Under which heading a metric stands."""
    return next((group for group, starts in _GROUPS if metric.startswith(starts)), "likeness")


def _corpus(suite: Suite, name: str, part: Asked, findings: Findings) -> dict[str, Any]:
    config, missing = suite.corpora[name], findings.missing[name]
    reasons = [f"{reason}: {count}" for reason, count in missing.items() if count]
    return {
        "name": name, "format": "crisis prompts" if config.questions == "crisis" else config.format, "split": config.split,
        "prompts": len(part.prompts), "dialogues": len({p.id.rpartition("#")[0] or p.id for p in part.prompts}),
        "left_out": sum(missing.values()), "why_left_out": "; ".join(reasons),
    }  # fmt: skip


def _arm(
    suite: Suite, name: str, model: Model | None, parts: Mapping[str, Asked], seconds: Mapping[str, float | None]
) -> dict[str, Any]:
    arm = suite.arms[name]
    answers = [answer for part in parts.values() for answer in part.answers[name]]
    reasons = failure_reasons(answers)
    facts = model.facts if model else {}
    return {
        "name": name, "title": arm.title or name, "kind": arm.kind, "about": arm.about,
        "model": f"best of {arm.candidates} of {arm.of}" if arm.of else arm.model or (model.source if model else ""),
        "run": str(model.run) if model and model.run else "", "trained": list(arm.train), "replies": len(answers),
        "failures": sum(reasons.values()), "failure_reasons": reasons, "seconds": seconds[name],
        **{fact: facts.get(fact) for fact in ("parameters", "trainable", "train_seconds", "peak_gb")},
    }  # fmt: skip


def _progress(model: Model) -> list[dict[str, Any]]:
    """The same prompts early, in the middle and late in a PPO run."""
    if model.run is None or not (model.run / "rollouts").is_dir():
        return []
    run = read_run(model.run)
    keys, _ = run.replies()
    return [
        {"step": reply.step, "stage": stage, "prompt_id": one.prompt.prompt_id, "history": reply.history, "reply": reply.reply,
         "reward": reply.reward if math.isfinite(reply.reward) else None}
        for one in progressions(run, keys)
        for stage, reply in one.replies
    ]  # fmt: skip


def _machine() -> dict[str, Any]:
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if name in installed},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
