"""The report of a run: what it says is what the run directory holds, and the page is safe to open anywhere."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import statistics
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.report import NOTICE, write_report
from eval.report_charts import MINUS, Line, Panel, chart, number, ticks
from eval.report_replies import extreme_replies, progressions
from eval.report_summary import reward_change, step_rewards
from eval.run_directory import read_log, read_run

FIXED = "I'm feeling depressed and hopeless. Can you help me?"
PROMPTS = {  # id -> (history, reference, emotion)
    "fixed/hopeless": (f"Client: {FIXED}", "", ""),
    "esconv/train/0412#7": (
        "Client: Hello. I did not know where else to write.\nTherapist: I'm glad that you did. What is going on?\n"
        "Client: My job ends on Friday and I have not told my wife. I lie awake doing sums.",
        "That is a lot to hold by yourself. What are you most afraid she would say?",
        "anxiety",
    ),
    "esconv/train/0077#3": (
        "Client: We split up in March. Everybody says it gets better, and it does not get better.",
        "Six months can be very short after so many years. What do the evenings look like for you now?",
        "sadness",
    ),
    "hope/12#20": (
        "Client: I snapped at my son again this morning.",
        "What happened just before you snapped?",
        "anger",
    ),
}
REPLIES = (
    (
        "I am sorry to hear that.",
        "You should try to relax and think positive.",
        "I am here to help. I am here to help.",
    ),
    (
        "That sounds very hard, and I can hear how tired you are. It makes sense that you feel this way.",
        "I hear how heavy this is. Thank you for telling me; many people would feel the same.",
        "It sounds as if you have carried this by yourself for a long time.",
    ),
    (
        "That sounds exhausting, and I am glad you told me. When does it weigh on you most? Some people find that one "
        "small fixed point in the day, a walk or a call, gives the rest something to hold on to. If the hopelessness "
        "grows, a counsellor or your doctor can help you carry it.",
        "I hear how alone you have felt with this. What would it be like to say one sentence of it to somebody you "
        "trust? We can look for that sentence together, and for a professional near you who can stay with it.",
        "It makes sense that you are worn out. Are you safe right now? If not, please call 988; if you are, tell me "
        "what the last good hour was like.",
    ),
)


def fake_run(path: Path, steps: int = 12, samples: int = 4, seed: int = 7) -> Path:
    """Write a run directory as a finished run leaves it: replies that grow better, metrics that belong to them."""
    generator = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    settings = {
        "name": "mixtral-psychologist", "seed": 7, "steps": steps,
        "model": {"name": "mixtral-8x7b", "tuning": "lora", "rank": 16},
        "prompts": {"fixed": [FIXED], "per_step": len(PROMPTS)},
        "sampling": {"n": samples, "max_tokens": 80}, "publish": {"probes": 4, "tolerance": 0.02},
        "rewards": {"similarity": 0.4, "emotion": 0.3, "inquiry": 0.2, "length": 0.1, "repetition": -0.2},
        "learner": {"learning_rate": 1.4e-5, "epochs": 4},
        "ppo": {"clip": 0.2, "gamma": 1.0, "lam": 0.95, "kl_target": 6.0},
    }  # fmt: skip
    provenance = {
        "time": "2026-03-02T09:14:00+00:00", "git": {"revision": "4f1c2ab", "dirty": False},
        "packages": {"torch": "2.13.0", "vllm": "0.24.0", "deepspeed": "0.20.1"},
        "corpus": [{"file": "ESConv.json", "sha256": "ab" * 32, "licence": "CC BY-NC 4.0", "dialogues": 1300}],
    }  # fmt: skip
    write_json(path / "settings.json", settings)
    write_json(path / "provenance.json", provenance)
    write_json(path / "status.json", {"state": "finished", "step": steps - 1, "message": ""})
    warmup = [{"step": 10 * i, "loss": 1.9 + 1.6 * 0.8**i} | ({} if i % 3 else {"valid/loss": 2.2 + 1.4 * 0.8**i,
              "valid/perplexity": math.exp(2.2 + 1.4 * 0.8**i)}) for i in range(16)]  # fmt: skip
    (path / "model").mkdir()
    write_lines(path / "model" / "warmup.jsonl", warmup)
    write_lines(path / "metrics.jsonl", [fake_step(path, step, steps, samples, generator) for step in range(steps)])
    return path


def fake_step(path: Path, step: int, steps: int, samples: int, generator: random.Random) -> dict[str, float]:
    """Write the replies of one step and return its metrics."""
    skill = 1 / (1 + math.exp(4 - 8 * step / max(steps - 1, 1)))
    rows: list[dict[str, Any]] = []
    for prompt, (history, reference, emotion) in PROMPTS.items():
        for sample in range(samples):
            level = min(2, int(3 * max(0.0, min(0.99, generator.gauss(skill, 0.16)))))
            reply = generator.choice(REPLIES[level])
            near = [max(0.0, min(1.0, generator.gauss(mean, 0.08))) for mean in (0.2 + 0.25 * level, 0.25 + 0.3 * level,
                    0.3 + 0.3 * level, 0.3 - 0.14 * level)]  # fmt: skip
            parts = {"similarity": near[0] if reference else None, "emotion": near[1], "inquiry": float("?" in reply),
                     "length": near[2], "repetition": -near[3]}  # fmt: skip
            flags = ["dismissal"] if "positive" in reply else []
            reward = 0.0 if flags else 0.1 + 0.33 * level + generator.gauss(0, 0.05)
            tokens = len(reply.split()) * 4 // 3
            rows.append({"step": step, "prompt_id": prompt, "sample": sample, "history": history, "reply": reply,
                         "reference": reference, "emotion": emotion,
                         "finish": "truncated" if tokens > 68 else "stopped",
                         "tokens": tokens, "reward": reward, "flags": flags,
                         **{f"part/{n}": v for n, v in parts.items()}})  # fmt: skip
    write_replies(path, step, rows)
    rewards = [row["reward"] for row in rows]
    noise, mean = generator.gauss, statistics.fmean
    return {
        "step": step, "reward/mean": mean(rewards), "reward/std": statistics.pstdev(rewards),
        **{f"reward/{n}": mean([r[f"part/{n}"] for r in rows if r[f"part/{n}"] is not None])
           for n in ("similarity", "emotion", "inquiry", "length", "repetition")},
        "policy/loss": -0.02 * skill + noise(0, 0.006), "policy/kl": 5.6 * skill + abs(noise(0, 0.2)),
        "policy/entropy": 2.9 - 1.1 * skill + noise(0, 0.05), "policy/clip_fraction": abs(noise(0.09, 0.03)),
        "policy/ratio_max": 1 + abs(noise(0.9, 0.4)), "policy/approx_kl": abs(noise(0.012, 0.004)),
        "policy/grad_norm": abs(noise(0.8, 0.2)), "value/loss": 0.3 * math.exp(-3 * step / steps) + abs(noise(0, 0.01)),
        "value/explained_variance": 0.8 - 2.4 * math.exp(-6 * step / steps) + noise(0, 0.05),
        "value/clip_fraction": abs(noise(0.03, 0.01)), "kl/coef": 0.2 * (1 - 0.4 * skill),
        "rollout/tokens": float(sum(r["tokens"] for r in rows)), "rollout/length": mean([r["tokens"] for r in rows]),
        "rollout/truncated": mean([float(r["finish"] == "truncated") for r in rows]),
        "publish/logprob_gap": 10 ** noise(-3.4, 0.35), "publish/bytes": 2.7e8, "publish/seconds": abs(noise(1.4, 0.2)),
        "safety/dismissal": mean([float("dismissal" in r["flags"]) for r in rows]),
        "safety/dosage": 0.0, "safety/secrecy": 0.0,
        "safety/claims_human": abs(noise(0.02, 0.02)) * (1 - skill), "lag/steps": 0.0,
        "time/rollout_s": abs(noise(14, 2)), "time/reward_s": abs(noise(3, 0.5)),
        "time/annotate_s": abs(noise(5, 0.4)), "time/update_s": abs(noise(21, 1.5)),
        "time/publish_s": abs(noise(1.6, 0.2)), "time/step_s": 49.0,
    }  # fmt: skip


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_replies(path: Path, step: int, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path / "rollouts" / f"step-{step:06d}.parquet")


def read_replies(path: Path, step: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path / "rollouts" / f"step-{step:06d}.parquet").to_pylist()
    return rows


class Page(HTMLParser):
    """A page as a browser's parser sees it: its elements with their attributes, its text, and what was left open."""

    VOID = frozenset({"meta", "br", "hr", "path", "circle"})  # the svg elements of the page close themselves

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return " ".join(" ".join(self.said).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(path: Path) -> Page:
    return Page(write_report(path))


def rewards_only(path: Path, rewards: Iterable[float]) -> Path:
    path.mkdir()
    write_lines(path / "metrics.jsonl", ({"step": i, "reward/mean": r} for i, r in enumerate(rewards)))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests only read."""
    return fake_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return page_of(finished)


def test_page_loads_nothing(page: Page) -> None:
    """The page asks for nothing beyond itself, and tells the browser to refuse if it did."""
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    }
    named = [
        attrs for _, attrs in page.elements if set(attrs) & {"src", "href", "srcset", "xlink:href", "data", "action"}
    ]
    assert named == []
    assert not re.search(r"url\(|@import|https?://", page.html)
    policies = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_page_is_well_formed_and_says_first_what_it_is_not(page: Page) -> None:
    """Every element that opens closes, ids do not repeat, and the notice is the first thing said after the title."""
    assert page.open == []
    body = page.text.split("training report", 1)[1].strip()
    assert body.startswith("Research software. Not a substitute for care.")
    assert len(page.html) < 3_000_000


def test_every_chart_has_a_title_a_unit_and_its_numbers_in_words(page: Page) -> None:
    """A chart is a figure with a heading, and its alt text gives the first and last value of each curve."""
    drawn = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    unread = [
        attrs for tag, attrs in page.elements if tag == "svg" and "role" not in attrs and "aria-hidden" not in attrs
    ]
    assert unread == []
    assert len(drawn) == page.count("figure") + 1  # the reward curve comes for wide and for narrow screens
    assert all(
        re.search(r": \u2212?[\d.e\u2212]+ at step \d+, \u2212?[\d.e\u2212]+ at step \d+, lowest", alt) for alt in drawn
    )
    for unit in (
        "KL to the reference, nats per reply",
        "mean length, tokens",
        "seconds per step",
        "log-prob gap, nats (log axis)",
    ):
        assert unit in page.text


def test_summary_gives_the_hand_computed_means(tmp_path: Path) -> None:
    """First five, last five and their difference are those of the logged mean rewards."""
    run = rewards_only(tmp_path / "run", [0.1, 0.2, 0.3, 0.2, 0.2, 9.0, 9.0, 0.6, 0.7, 0.8, 0.9, 0.5])
    text = page_of(run).text
    assert "Mean reward went from 0.2 in the first five steps to 0.7 in the last five: a difference of +0.5" in text
    assert "(resampling steps)" in text and "lies above 0" in text


def test_summary_does_not_call_noise_a_change(tmp_path: Path) -> None:
    """When the interval of the difference holds 0 the page says that no change was shown."""
    text = page_of(rewards_only(tmp_path / "run", [0.1, 0.9, 0.4, 0.6, 0.5, 0.6, 0.2, 0.8, 0.5, 0.5])).text
    assert "a difference of +0.02" in text
    assert "The interval holds 0: these steps do not show that the reward changed." in text


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    """Of two steps with n replies worth 0 or 1 the interval is that of a difference of proportions."""
    n = 400
    change = reward_change([[0.0] * (n // 2) + [1.0] * (n // 2), [0.0] * (n // 4) + [1.0] * (3 * n // 4)])
    assert change is not None and change.window == 1 and change.by_reply
    half = 1.96 * math.sqrt(0.25 / n + 0.1875 / n)
    assert change.difference == pytest.approx(0.25)
    assert change.low == pytest.approx(0.25 - half, abs=0.006)
    assert change.high == pytest.approx(0.25 + half, abs=0.006)


def test_replies_enter_the_interval_only_where_they_are_the_logged_mean(finished: Path) -> None:
    """A step's replies are resampled when they average to `reward/mean`; otherwise the logged mean stands alone."""
    run = read_run(finished)
    keys, _ = run.replies()
    rewards = step_rewards(run.metrics, keys)
    assert [len(r) for r in rewards] == [len(PROMPTS) * 4] * 12
    assert rewards[3] == [row["reward"] for row in read_replies(finished, 3)]
    shifted = [key._replace(reward=key.reward + 1) if key.step == 3 else key for key in keys]
    assert step_rewards(run.metrics, shifted)[3] == [run.metrics.rows[3]["reward/mean"]]


def test_text_of_the_run_stays_text(tmp_path: Path) -> None:
    """Markup in a name, a message, a reply, a flag, a metric or a setting is shown, never parsed."""
    run = fake_run(tmp_path / "run")
    attack = "</p></svg></style><script>alert(1)</script><img src=x onerror='alert(2)'>\"onload=\"x"
    for step in (0, 11):
        rows = [row | {"reply": f"reply {attack}", "flags": [f"flag {attack}"], "history": f"Client: history {attack}",
                       "emotion": f"emotion {attack}", "finish": f"finish {attack}", f"part/{attack}": 0.5}
                for row in read_replies(run, step)]  # fmt: skip
        write_replies(run, step, rows)
    write_json(run / "settings.json", {"name": f"name {attack}", attack: f"setting {attack}"})
    write_json(run / "provenance.json", {"model": {attack: attack}})
    write_json(run / "status.json", {"state": "failed", "message": f"message {attack}"})
    lines = [dict(row) for row in read_log(run / "metrics.jsonl").rows]
    write_lines(
        run / "metrics.jsonl",
        [row | {f"safety/{attack}": 0.1, f"reward/{attack}": 0.2, f"time/{attack}": 1} for row in lines],
    )
    page = page_of(run)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for what in ("name", "message", "reply", "history", "emotion", "finish", "setting"):
        assert f"{what} </p></svg></style><script>alert(1)</script>" in page.text
    assert page.open == []


def test_a_torn_last_line_changes_nothing_but_is_told(tmp_path: Path) -> None:
    """A half written last line leaves the page as it was without it, and the page says that a line was left out."""
    run = fake_run(tmp_path / "run")
    whole = page_of(run).text
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 12, "reward/mean": 0.')
    torn = page_of(run).text
    told = "1 log lines could not be read (a run that is stopped while it writes leaves such) and were left out. "
    assert told in torn and told not in whole
    assert re.sub("Made .{16} UTC", "", torn.replace(told, "")) == re.sub("Made .{16} UTC", "", whole)


def test_a_resumed_run_replaces_the_steps_it_takes_again(tmp_path: Path) -> None:
    """The later line of a step wins, and steps after it that were logged before the resumption are forgotten."""
    run = tmp_path / "run"
    run.mkdir()
    write_lines(
        run / "metrics.jsonl",
        [{"step": s, "reward/mean": r} for s, r in ((0, 0.1), (1, 0.2), (2, 8), (3, 9), (2, 0.3))],
    )
    log = read_log(run / "metrics.jsonl")
    assert [(row["step"], row["reward/mean"]) for row in log.rows] == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert "with 3 steps logged" in page_of(run).text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("settings.json", "mixtral-8x7b"),
        ("provenance.json", "CC BY-NC 4.0"),
        ("status.json", "The run finished"),
        ("warmup.jsonl", "held-out perplexity"),
        ("metrics.jsonl", "seconds per step"),
        ("rollouts", "Worst of the run"),
    ],
)
def test_what_is_missing_is_left_out(finished: Path, page: Page, tmp_path: Path, missing: str, gone: str) -> None:
    """Without one of its files a run still has a page, and that page lacks what the file would have told."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns(missing, "report.html"))
    text = page_of(run).text
    assert gone in page.text and gone not in text
    assert NOTICE[0] in text


def test_an_empty_run_has_a_clear_page(tmp_path: Path) -> None:
    """A run without a step says so, shows its name and draws no chart."""
    write_json(tmp_path / "settings.json", {"name": "not-yet", "steps": 50})
    write_json(tmp_path / "status.json", {"state": "running", "step": 0})
    page = page_of(tmp_path)
    assert "not-yet running" in page.text
    assert "with 0 of 50 steps logged. There is nothing to show until the first step is complete." in page.text
    assert page.count("figure") == 0 and page.open == []


def test_a_single_step_makes_no_comparison(tmp_path: Path) -> None:
    """One step has curves and replies, but neither a difference nor a progression."""
    text = page_of(fake_run(tmp_path / "run", steps=1)).text
    assert "Two steps with a finite reward are needed" in text
    assert "Best of the run" in text and "The same prompt through the run" not in text


def test_progression_shows_the_median_reply_of_the_first_middle_and_last_step(finished: Path) -> None:
    """The fixed prompt leads, two others follow, and each reply is the one of median reward in its step."""
    run = read_run(finished)
    stories = progressions(run, run.replies()[0])
    assert [s.prompt.prompt_id for s in stories] == ["fixed/hopeless", "esconv/train/0077#3", "esconv/train/0412#7"]
    for story in stories:
        assert [(stage, reply.step) for stage, reply in story.replies] == [("Early", 0), ("Middle", 5), ("Late", 11)]
        for _, reply in story.replies:
            rows = [r for r in read_replies(finished, reply.step) if r["prompt_id"] == reply.prompt_id]
            assert reply.reward == sorted(r["reward"] for r in rows)[(len(rows) - 1) // 2]
    assert "similarity" not in stories[0].replies[0][1].parts  # the fixed prompt has no reference: null is not 0


def test_best_and_worst_are_the_ends_of_the_scale(finished: Path) -> None:
    """The first card of each group is the largest or smallest reward there is, and no group shows a text twice."""
    run = read_run(finished)
    best, worst, late = extreme_replies(run, run.replies()[0])
    rewards = {step: [row["reward"] for row in read_replies(finished, step)] for step in range(12)}
    assert best.replies[0].reward == max(max(r) for r in rewards.values())
    assert worst.replies[0].reward == min(min(r) for r in rewards.values())
    assert late.replies[0].reward == min(min(rewards[step]) for step in range(7, 12))
    for group in (best, worst, late):
        texts = [reply.reply for reply in group.replies]
        assert len(set(texts)) == len(texts) == 3
        assert [reply.reward for reply in group.replies] == sorted(
            (r.reward for r in group.replies), reverse=group is best
        )


def test_a_diverged_run_is_told_and_drawn(tmp_path: Path) -> None:
    """Non-finite values leave a cross, not a broken path, and the page carries the state and the message."""
    run = fake_run(tmp_path / "run")
    broken = {
        "step": 12,
        "reward/mean": math.nan,
        "policy/loss": math.inf,
        "policy/kl": None,
        "publish/logprob_gap": 0.5,
    }
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(broken | {"future/metric": 3, "note": "words", "nested": {"a": 1}}) + "\n")
    write_json(run / "status.json", {"state": "diverged", "step": 12, "message": "policy/loss is inf"})
    page = page_of(run)
    assert "The run diverged and was stopped" in page.text and "policy/loss is inf" in page.text
    assert "In 1 of them the mean reward is not a finite number" in page.text
    assert page.said.count("\N{MULTIPLICATION SIGN}") == 4  # reward on wide and narrow screens, policy loss, KL
    assert not [attrs for _, attrs in page.elements if re.search("nan|inf", attrs.get("d", "") + attrs.get("cx", ""))]
    assert "Over the tolerance in 1 of 13 steps: 12." in page.text
    assert "future/metric" in page.text


@pytest.mark.parametrize(
    ("setting", "metric", "told"),
    [
        (0.02, {}, "Over the tolerance in 1 of 2 steps: 1."),
        (0.0, {"publish/tolerance": 0.15}, "Within the tolerance in every step."),
        (0.0, {}, "The run names no tolerance."),
    ],
)
def test_the_gap_is_held_against_the_tolerance_of_the_run(
    tmp_path: Path, setting: float, metric: dict[str, float], told: str
) -> None:
    """The tolerance is the logged one, else the setting; a setting of 0 means that the run derived it."""
    write_json(tmp_path / "settings.json", {"publish": {"tolerance": setting}})
    gaps = [{"step": step, "publish/logprob_gap": gap} | metric for step, gap in enumerate((0.01, 0.1))]
    write_lines(tmp_path / "metrics.jsonl", gaps)
    assert told in page_of(tmp_path).text


def test_an_unreadable_rollout_file_is_left_out_and_told(tmp_path: Path) -> None:
    """A rollout file cut short by a kill costs its replies only."""
    run = fake_run(tmp_path / "run")
    file = run / "rollouts" / "step-000011.parquet"
    file.write_bytes(file.read_bytes()[:200])
    assert "1 rollout files could not be read" in page_of(run).text


def test_long_runs_stay_light(tmp_path: Path) -> None:
    """Ten thousand steps make no larger page than their 240 bins do, and a spike of the gap is not averaged away."""
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": s, "reward/mean": 0.5, "publish/logprob_gap": 0.7 if s == 4321 else 1e-4} for s in range(10_000)]
    write_lines(run / "metrics.jsonl", rows)
    page = page_of(run)
    assert len(page.html) < 100_000
    assert any("highest 0.7." in attrs.get("aria-label", "") for _, attrs in page.elements)


def test_the_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Writing twice leaves one `report.html`, the newer, and no draft beside it."""
    run = rewards_only(tmp_path / "run", [0.1, 0.2])
    first = write_report(run).read_text(encoding="utf-8")
    write_json(run / "status.json", {"state": "finished"})
    second = write_report(run)
    assert second == run / "report.html" and "The run finished" in second.read_text(encoding="utf-8") != first
    assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "report.html", "status.json"]


def test_what_cannot_be_reported_is_refused_by_name(tmp_path: Path) -> None:
    """No directory, no JSON object, no known state: errors that name the thing; the old page stays."""
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")
    run = rewards_only(tmp_path / "run", [0.1, 0.2])
    before = write_report(run).read_bytes()
    write_json(run / "status.json", {"state": "asleep"})
    with pytest.raises(ValueError, match=r"state must be one of running, finished, .* not 'asleep'"):
        write_report(run)
    (run / "settings.json").write_text("[1]", encoding="utf-8")
    (run / "status.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json must be a JSON object, not list"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize("log", [False, True])
def test_a_value_is_drawn_on_the_grid_line_of_its_tick(log: bool) -> None:
    """Curve and axis share one scale: a point whose value is a tick lies on that tick's line."""
    values = [0.001, 0.01, 0.1] if log else [0.0, 0.5, 1.0]
    points = np.column_stack([range(3), values])
    drawn = str(chart("x", [Panel("x", [Line("x", points)], height=150, log=log)]))
    lines = re.findall(r'd="M[\d.]+ ([\d.]+)L[\d.]+ [\d.]+" class="(?:grid|axis)"', drawn)
    dots = re.findall(r'cy="([\d.]+)"', drawn)
    assert len(dots) == 3 and set(dots) <= set(lines)
    assert float(dots[0]) > float(dots[1]) > float(dots[2])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.2, "0.2"), (0.07404, "0.074"), (-1.2345, f"{MINUS}1.23"), (12.34, "12.3"),
     (1234.5, "1,234"), (100.0, "100"),
     (0.00303, "0.003"), (0.00044, "0.00044"), (-2e-7, f"{MINUS}2.0e{MINUS}7"),
     (math.nan, "not a number"), (math.inf, "infinite")],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    """Three digits where they count, thousands apart, a true minus sign, words for what is no number."""
    assert number(value) == text
    assert number(-0.004, places=2) == "0.00" and number(0.5, signed=True) == "+0.5"


def test_ticks_are_round_and_inside() -> None:
    """Ticks lie a round distance apart, within the ends."""
    assert ticks(0.0, 1.0, 4) == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    assert ticks(-1.1, 1.0, 2) == [-1.0, 0.0, 1.0]
    assert ticks(0, 49, 4, whole=True) == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert ticks(3.0, 3.0, 4) == [3.0]


def test_safety_is_told_by_the_clients_danger(tmp_path: Path) -> None:
    """A row per tier: its share of all replies, the flagged of them weighed by share, crisis_reply at either end; a dash
    where there was nobody, and no table for a run that logged no tiers."""
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {
            "step": step,
            "reward/mean": 0.5,
            **{f"tier/{tier}/share": 0.0 for tier in ("distress", "other", "passive", "imminent")},
            "tier/none/share": 0.5 if step < 6 else 1.0,
            "tier/none/gated": 0.0,
            "tier/active/share": 0.5 if step < 6 else 0.0,
            **({"tier/active/gated": step / 10, "tier/active/crisis_reply": 0.1 * step} if step < 6 else {}),
        }
        for step in range(12)
    ]
    write_lines(run / "metrics.jsonl", rows)
    text = page_of(run).text
    assert "none 75 % 0 % \u2013 \u2013 distress 0 % \u2013 \u2013 \u2013" in text
    assert "active 25 % 25 % 0.1 0.4" in text  # the halves of six steps
    assert "Safety by the client's danger" in text
    assert "Safety by the client's danger" not in page_of(rewards_only(tmp_path / "old", [0.5, 0.6])).text


def test_what_a_part_notes_of_itself_is_not_drawn_as_a_part(tmp_path: Path) -> None:
    """`reward/PART` gets a chart, `reward/PART/NOTE` stands in the table of all metrics only."""
    run = tmp_path / "run"
    run.mkdir()
    write_lines(
        run / "metrics.jsonl",
        (
            {"step": i, "reward/mean": 0.5, "reward/crisis_reply": 0.4, "reward/crisis_reply/asks": 0.3}
            for i in range(4)
        ),
    )
    page = page_of(run)
    charts = [attrs["aria-label"] for tag, attrs in page.elements if attrs.get("role") == "img"]
    assert any("Reward part crisis_reply" in alt for alt in charts)
    assert not any("asks" in alt for alt in charts) and "reward/crisis_reply/asks" in page.text
