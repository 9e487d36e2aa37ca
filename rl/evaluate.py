"""`attune evaluate SUITE`: arms x corpora x metrics -> tables, every reply, a report. Run again, it goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from cluster.placement import connect, require_room
from cluster.tracking import Stages
from eval.adapters import check_adapter
from eval.instruments import Instruments
from eval.suite_config import Suite
from eval.suite_findings import sentences, warnings
from eval.suite_results import Findings, find, usable
from eval.suite_table import comma_separated, markdown, replies
from rl.intake import check_files
from rl.records import locked, write_atomically, write_table
from rl.suite_answers import Said, collect, decoder_claims, engine_claims
from rl.suite_crisis import rate
from rl.suite_json import results_json
from rl.suite_prompts import Prompts, Questions, read_questions, readable
from rl.suite_training import Model, make, paid_terms
from rollout.chat import Chat
from rollout.tokenizer import load_tokenizer

RESULTS = "results.json"


def run(suite: Suite) -> Path:
    """Evaluate a suite; the directory with `table.md`, `table.csv`, `replies.parquet`, `results.json` and `report.html`.

    Settings, metrics, corpora, recipes and room on the cluster are looked at first. Then arms are trained that have to be, each one
    answers, and what they said is measured. Answers are kept by what they depend on, so that the same command goes on. Raises
    ValueError (settings, input), RewardError (a judge gives nothing), and what training raises.
    """
    stage = Stages()
    with locked(suite.directory, "suite directory"):
        instruments = Instruments(_with_judge_cache(suite).settings.measure)
        with stage("reading corpora and settings"):
            questions = {name: read_questions(suite, name) for name in suite.corpora}
            usable(suite, {name: part.prompts for name, part in questions.items()}, instruments)
            paid = {name: paid_terms(suite, name) for name in suite.arms}  # reads every recipe
            for name, arm in suite.arms.items():
                if arm.kind == "model" and arm.model and "{" not in arm.model:
                    check_files(f"arms.{name}.model", arm.model)
                if arm.adapter and "{" not in arm.adapter:
                    check_adapter(f"arms.{name}.adapter", Path(arm.adapter))
        with stage("connecting to Ray"):
            connect()
            require_room(engine_claims(suite))
            if suite.settings.beams.sizes:
                require_room(decoder_claims(suite))
        models: dict[str, Model] = {}
        for name, arm in suite.arms.items():
            if arm.kind == "model":
                with stage(f"arm {name}: its model") if arm.train else nullcontext():
                    models[name] = make(suite, name, models, print)
        system = suite.settings.generation.system
        chats = {name: Chat(load_tokenizer(m.source, m.revision), system=system) for name, m in models.items()}
        prompts = {name: readable(suite, name, part, chats) for name, part in questions.items()}
        said = collect(suite, prompts, models, chats, stage)
        with stage("measuring"):
            rate(suite, said.talks)
            findings = find(suite, said.asked(prompts), instruments, lambda line: print(f"  {line}", flush=True))
        _write(
            suite, questions, prompts, findings, models, said, {name: terms for name, terms in paid.items() if terms}
        )
    return suite.directory


def _with_judge_cache(suite: Suite) -> Suite:
    """A judge's answers are paid for: they are kept with the suite's, unless the settings name a file."""
    measure = suite.settings.measure
    judge = measure.rewards.judge
    if not judge.url or judge.cache:
        return suite
    folder = suite.directory / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    rewards = replace(measure.rewards, judge=replace(judge, cache=str(folder / "judge.sqlite")))
    return replace(suite, settings=replace(suite.settings, measure=replace(measure, rewards=rewards)))


def _write(
    suite: Suite,
    questions: Mapping[str, Questions],
    prompts: Mapping[str, Prompts],
    findings: Findings,
    models: Mapping[str, Model],
    said: Said,
    paid: Mapping[str, list[str]],
) -> None:
    """Tables, replies, results and the report, each whole or not at all."""
    from eval.suite_report import write_suite_report

    directory = suite.directory
    told, warned = sentences(suite, findings), warnings(suite, findings, paid)
    write_atomically(directory / "table.md", markdown(suite, findings, told, warned))
    write_atomically(directory / "table.csv", comma_separated(suite, findings))
    write_table(directory / "replies.parquet", replies(findings.rows))
    provenance = {name: dict(part.provenance) for name, part in questions.items()}
    results = results_json(suite, findings, said.asked(prompts), models, said.seconds, provenance, told, warned)
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, default=str) + "\n")
    write_suite_report(directory)
