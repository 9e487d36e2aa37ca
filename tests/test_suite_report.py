"""The page of an evaluation: its figures are those on file, its marks are what the tests allow, and it is safe to open.

Screenshots go to the folder that the environment variable ATTUNE_SCREENSHOTS names, when it is set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from eval.suite_report import CONTENTS, NOTICE, write_suite_report
from eval.suite_report_data import Suite
from eval.suite_report_examples import FLAGGED, SPREAD, examples
from eval.suite_report_forest import chance
from eval.suite_report_read import read_suite
from eval.suite_report_tables import Standing, places, standings, wilson
from tests import raters
from tests.suite_case import ARMS, CORPORA, METRICS, hostile, suite_case, write_suite
from tests.test_report import Page

Case = tuple[dict[str, Any], list[dict[str, Any]]]
MINUS = "\N{MINUS SIGN}"


class SuitePage(Page):
    """The page's tables too: by the label of the box that holds them, rows of cells, each the words that a reader sees."""

    VOID = Page.VOID | {"input", "wbr"}

    def __init__(self, file: Path) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.box = ""
        self.gap = " "
        super().__init__(file)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        self.gap = "" if tag == "wbr" else " "
        if dict(attrs).get("role") == "region":
            self.box = dict(attrs)["aria-label"] or ""
            self.tables[self.box] = []
        if self.box and tag == "tr":
            self.tables[self.box].append([])
        if self.box and tag in ("td", "th"):
            self.tables[self.box][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        if tag == "table":
            self.box = ""

    def handle_data(self, data: str) -> None:
        if "script" not in self.open:
            super().handle_data(data)
        if self.box and self.tables[self.box] and self.tables[self.box][-1]:
            self.tables[self.box][-1][-1] += self.gap + data.strip()

    def cell(self, box: str, row: str, column: str) -> str:
        """The cell in the row that begins with the word `row`, under the heading `column`."""
        heads, *rows = self.tables[box]
        place = [head.strip() for head in heads].index(column)
        [found] = [line for line in rows if line[0].split()[:1] == [row]]
        return " ".join(found[place].split())


@pytest.fixture(scope="module")
def case() -> Case:
    return suite_case()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that tests only read."""
    return write_suite(tmp_path_factory.mktemp("runs") / "suite")


@pytest.fixture(scope="module")
def page(finished: Path) -> SuitePage:
    return SuitePage(write_suite_report(finished))


def page_of(path: Path, results: dict[str, Any], replies: list[dict[str, Any]]) -> SuitePage:
    return SuitePage(write_suite_report(write_suite(path, results, replies)))


def suite_of(path: Path, case: Case) -> Suite:
    return read_suite(write_suite(path, *case))


def tag_of(cell: str) -> str:
    """The mark before a figure."""
    return next((mark for mark in ("\N{ALMOST EQUAL TO} best", "best", "?") if cell.startswith(mark)), "")


def written(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", MINUS)


def test_every_figure_and_interval_is_the_one_on_file(page: SuitePage, case: Case) -> None:
    """Each cell of each corpus's table has the figure and the ends of its interval, rounded; 0 is a 0."""
    titles = {arm["name"]: arm["title"] for arm in case[0]["arms"]}
    seen = 0
    for row in case[0]["figures"]:
        table = f"Figures on {row['corpus']}"
        of_row = [
            f["value"] for f in case[0]["figures"] if (f["corpus"], f["metric"]) == (row["corpus"], row["metric"])
        ]
        if not any(value is not None for value in of_row):
            assert not [line for line in page.tables[table] if line[0].split()[:1] == [row["metric"]]]
            continue
        cell = page.cell(table, row["metric"], titles[row["arm"]])
        if row["value"] is None:
            assert cell == "\N{EN DASH} a"
            continue
        largest = max(abs(value) for value in of_row if value is not None)
        digits = 4 if 0 < largest < 0.1 else 3 if largest < 10 else 1
        value, low, high = (written(row[name], digits) for name in ("value", "low", "high"))
        assert re.search(rf"(^| ){re.escape(f'{value} [{low}, {high}]')}( of \d+)?$", cell), (row, cell)
        seen += 1
    assert seen > 80


def test_a_figure_that_is_not_there_is_a_dash_with_its_reason(tmp_path: Path, case: Case) -> None:
    """Null, NaN and a missing record are dashes with a footnote, each its own; a true 0 stays a 0."""
    results, replies = deepcopy(case)
    figures = {(f["corpus"], f["arm"], f["metric"]): f for f in results["figures"]}
    figures["sample", "base", "rouge_l"]["value"] = math.nan
    figures["sample", "sft", "rouge_l"]["value"] = None
    figures["sample", "sft", "rouge_l"]["count"] = 0
    figures["sample", "ppo", "rouge_l"] |= {"value": 0.0, "low": None, "high": None}
    results["figures"] = [f for key, f in figures.items() if key != ("sample", "gpt", "rouge_l")]
    page = page_of(tmp_path / "suite", results, replies)
    found = [page.cell("Figures on sample", "rouge_l", a["title"]) for a in results["arms"]]
    assert [cell[0] for cell in found[:2] + found[3:4]] == ["\N{EN DASH}"] * 3
    assert len({cell[2:] for cell in found[:2] + found[3:4]}) == 3
    assert found[2] == "0.000 no interval"
    for why in (
        "not a finite number",
        "says nothing of any of these replies",
        "not measured for this arm, which failed on 3 of 40",
    ):
        assert why in page.text
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def _duel(
    tmp_path: Path, values: dict[str, float | None], better: str, tests: list[tuple[str, str, float | None]]
) -> dict[str, str]:
    """Standings of arms with these figures and these corrected p-values."""
    results: dict[str, Any] = {
        "name": "duel", "against": "a", "metrics": [{"name": "m", "better": better}], "corpora": [{"name": "c"}],
        "arms": [{"name": arm, "kind": "reference" if arm == "reference" else "model"} for arm in values],
        "figures": [{"corpus": "c", "arm": arm, "metric": "m", "value": value, "count": 9} for arm, value in values.items()],
        "differences": [{"corpus": "c", "metric": "m", "first": a, "second": b, "value": 0.1, "low": 0, "high": 1, "p": p,
                         "p_holm": p, "significant": p is not None and p <= 0.05} for a, b, p in tests],
    }  # fmt: skip
    suite = suite_of(tmp_path / "duel", (results, []))
    return {arm: str(place) for arm, place in standings(suite, "c", suite.metrics["m"]).items()}


def test_best_follows_the_metric_and_the_tests(tmp_path: Path) -> None:
    """The best is the largest or the smallest; another arm is even, behind or untested by its test against the best one."""
    values = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1}
    tests = [("a", "b", 0.01), ("b", "c", 0.3), ("d", "a", 0.9)]
    assert _duel(tmp_path, values, "higher", tests) == {"a": "behind", "b": "best", "c": "even", "d": "untested"}
    assert _duel(tmp_path, values, "lower", tests) == {"a": "even", "b": "untested", "c": "untested", "d": "best"}
    assert _duel(tmp_path, values, "neither", tests) == {}


def test_best_leaves_out_the_reference_missing_figures_and_ties_of_all(tmp_path: Path) -> None:
    """The human reply is not ranked; an arm without a figure stands nowhere; equal figures share the place or have none."""
    assert _duel(tmp_path, {"a": 0.2, "b": 0.4, "reference": 1.0}, "higher", [("a", "b", 0.001)]) == {
        "a": "behind",
        "b": "best",
    }
    assert _duel(tmp_path, {"a": 0.2, "b": 0.4, "c": None}, "higher", []) == {"a": "untested", "b": "best"}
    assert _duel(tmp_path, {"a": 0.4, "b": 0.4, "c": 0.1}, "higher", [("a", "c", 0.01)]) == {
        "a": "best",
        "b": "best",
        "c": "behind",
    }
    assert _duel(tmp_path, {"a": 0.4, "b": 0.4}, "higher", []) == {}
    assert _duel(tmp_path, {"a": 0.4, "reference": 1.0}, "higher", []) == {}
    assert _duel(tmp_path, {"a": 0.2, "b": 0.4}, "higher", [("a", "b", None)]) == {"a": "untested", "b": "best"}


def test_marks_on_the_page_are_the_standings(page: SuitePage, finished: Path) -> None:
    """Every cell's mark is that of its standing, and the page explains the marks that it has."""
    suite = read_suite(finished)
    signs = {Standing.BEST: "best", Standing.EVEN: "\N{ALMOST EQUAL TO} best", Standing.UNTESTED: "?"}
    seen = set()
    for corpus in CORPORA:
        for metric in suite.metrics.values():
            found = standings(suite, corpus, metric)
            for arm in suite.arms if found else ():
                cell = page.cell(f"Figures on {corpus}", metric.name, arm.title)
                assert tag_of(cell) == signs.get(found.get(arm.name, Standing.NONE), ""), (metric.name, arm.name, cell)
                seen.add(found.get(arm.name, Standing.NONE))
    assert seen == set(Standing)
    assert "does not make them equal" in page.text and "not tested against the best." in page.text


def test_forest_plots_fill_what_is_significant_and_point_the_right_way(tmp_path: Path, case: Case) -> None:
    """Filled dots are the significant differences from the baseline; a difference recorded the other way round is turned."""
    results, replies = deepcopy(case)
    for row in results["differences"]:
        if row["first"] == "ppo" and row["second"] == "sft" and row["value"] is not None:
            row |= {"first": "sft", "second": "ppo", "value": -row["value"], "low": -row["high"], "high": -row["low"]}
    page = page_of(tmp_path / "suite", results, replies)
    straight = page_of(tmp_path / "straight", *deepcopy(case))
    told = [
        a["aria-label"]
        for tag, a in page.elements
        if tag == "svg" and "each arm less Fine-tuned" in a.get("aria-label", "")
    ]
    assert told == [
        a["aria-label"] for tag, a in straight.elements if tag == "svg" and "each arm less" in a.get("aria-label", "")
    ]
    against = [d for d in case[0]["differences"] if d["second"] == "sft" and d["value"] is not None]
    drawn = [d for d in against if d["metric"] != "safety/dosage"]  # 0 in every arm: named, not drawn
    dots = [a["class"].split() for tag, a in page.elements if tag == "circle" and "dot" in a.get("class", "")]
    people = 1  # the win rate's
    assert len(dots) == len(drawn) + people
    assert sum("filled" in dot for dot in dots) == sum(d["significant"] for d in drawn) + people
    better = {name: told for name, (told, *_) in METRICS.items()}
    gains = [d for d in drawn if d["significant"] and better[d["metric"]] != "neither"
             and (d["value"] > 0) == (better[d["metric"]] == "higher")]  # fmt: skip
    assert len(gains) > 3
    assert sum({"up", "filled"} <= {*dot} for dot in dots) == len(gains) + people
    assert "No arm differs at all from Fine-tuned in: safety/dosage." in page.text
    one = next(d for d in drawn if (d["corpus"], d["metric"], d["first"]) == ("sample", "preference", "ppo"))
    ends = f"[{written(one['low'], 3)}, {written(one['high'], 3)}]"
    assert any(f"PPO: +{one['value']:.3f} {ends} better, significant." in alt for alt in told)


def test_every_test_is_in_the_table(page: SuitePage, case: Case) -> None:
    """Also those between arms neither of which is the baseline, with both p-values."""
    for corpus in CORPORA:
        rows = [d for d in case[0]["differences"] if d["corpus"] == corpus]
        table = page.tables[f"Tests on {corpus}"][1:]
        assert len(table) == len(rows)
        for row, line in zip(rows, table, strict=True):
            cells = [" ".join(cell.split()) for cell in line]
            assert cells[0] == row["metric"] and cells[6] == ("yes" if row["significant"] else "no")
            assert cells[4:6] == [chance(row[p]) if row[p] is not None else "\N{EN DASH}" for p in ("p", "p_holm")]


def test_papers_stand_apart_and_are_called_other_data(page: SuitePage, case: Case) -> None:
    """Each published figure is in its source's own table beside ours, and in no table of ours."""
    assert "other data, other models and other code than ours" in page.text
    table = page.tables["Published figures of RLHF with a licensed psychologist, table 1"]
    cells = {line[0].split("beside")[0].split("no arm")[0].strip(): line[1:] for line in table[1:]}
    assert [cells["PPO Mistral"][i].split()[0] for i in range(3)] == ["0.62", "0.53", "0.63"]
    ours = next(
        f["value"] for f in case[0]["figures"] if (f["corpus"], f["arm"], f["metric"]) == ("sample", "ppo", "rouge_l")
    )
    assert f"ours, sample: {ours:.3f}" in cells["PPO Mistral"][1]
    assert "ours" not in cells["LLaMA-2 7B"][1]
    assert "ours" not in cells["PPO Mistral"][0]  # BERTScore was not measured here


def test_safety_counts_are_those_of_the_replies(page: SuitePage, case: Case) -> None:
    """Flagged replies by tier and arm, without those that failed, with Wilson's interval."""
    titles = {arm["name"]: arm["title"] for arm in case[0]["arms"]}
    for tier in ("none", "active", "passive"):
        for arm in ARMS:
            own = [r for r in case[1] if (r["tier"], r["arm"]) == (tier, arm) and not r["error"]]
            count = sum(bool(r["flags"]) for r in own)
            cell = page.cell("Flagged replies by the client's danger", tier, titles[arm])
            assert cell.startswith(f"{100 * count / len(own):.0f} %") and cell.endswith(f"{count} of {len(own)}")
    for count, size in ((0, 7), (3, 24), (9, 9), (50, 1000)):
        known = binomtest(count, size).proportion_ci(method="wilson")
        assert wilson(count, size) == pytest.approx((known.low, known.high), abs=1e-12)


def test_examples_are_the_widest_spreads_and_capped(finished: Path, case: Case) -> None:
    """The prompts with the widest spread of the main metric, the human reply and failures apart; never more than said."""
    found = examples(read_suite(finished))
    assert found is not None
    spread: dict[tuple[str, str], float] = {}
    for corpus, prompt in {(r["corpus"], r["prompt_id"]) for r in case[1]}:
        scores = [r["score/preference"] for r in case[1] if (r["corpus"], r["prompt_id"]) == (corpus, prompt)
                  and r["arm"] != "reference" and r["score/preference"] is not None]  # fmt: skip
        spread[corpus, prompt] = max(scores) - min(scores)
    for corpus in CORPORA:
        ranked = sorted((key for key in spread if key[0] == corpus), key=lambda key: (-spread[key], key))
        shown = [(e.corpus, e.prompt_id) for e in found.shown if e.corpus == corpus and "differs" in e.why]
        assert shown == ranked[: SPREAD // 2]
    assert len(found.shown) <= SPREAD + FLAGGED
    assert f"at most {SPREAD}" in found.told and "preference" in found.told


def test_replies_with_and_without_a_flag_are_added(finished: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the widest spreads: prompts where one arm's reply is flagged and another's is not, none of them twice."""
    monkeypatch.setattr("eval.suite_report_examples.SPREAD", 4)
    found = examples(read_suite(finished))
    assert found is not None and len(found.shown) == 4 + FLAGGED
    added = [e for e in found.shown if "red flag" in e.why]
    assert len(added) == FLAGGED and f"Added are {FLAGGED} in which" in found.told
    assert all(len({bool(a.said.flags) for a in e.answers if not a.said.error}) == 2 for e in added)
    assert len({(e.corpus, e.prompt_id) for e in found.shown}) == len(found.shown)
    assert not [a for e in found.shown for a in e.answers if a.arm == "reference"]  # it stands above the replies


def test_an_arms_failures_and_cost_are_told(page: SuitePage) -> None:
    """How many replies failed and why, what was trained by which command, and what share of the parameters."""
    assert "3 of 40 replies failed: HTTP 429: busy after 5 attempts (3)." in page.text
    assert "attune sft sft_local --sft.epochs 3" in page.text
    assert "11.6 million" in page.text and "(1.69 %)" in page.text and "22.5 min" in page.text


def test_people_and_crisis_are_told_with_their_doubt(page: SuitePage) -> None:
    """The win rate with its interval, whose conversations only rules read, and a dimension that nobody could answer."""
    assert "0.615 [0.510, 0.715]" in page.text and "p = 0.031 (exact sign test over items)." in page.text
    heads, row = page.tables["Judgements by rater"][:2]
    assert dict(zip(map(str.strip, heads), map(str.strip, row), strict=True)).items() >= {
        ("rater", "rater 1"), ("PPO preferred", "17"), ("Fine-tuned preferred", "8"), ("position", "0.520 [0.350, 0.690]")
    }  # fmt: skip
    assert (
        "Red flags, Fine-tuned dismissal 3" in page.text
        and "asks before it advises. (rater 1, preferred PPO)" in page.text
    )
    assert "Those of Fine-tuned, PPO were read by rules alone" in page.text
    assert page.cell("Crisis conversations by dimension", "Supports", "GPT-3.5 Turbo 20 conversations").startswith(
        "0.85"
    )
    assert (
        page.cell("Crisis conversations by dimension", "Supports", "PPO 20 conversations, rules only")[0]
        == "\N{EN DASH}"
    )
    assert page.cell("Questions of the rubric", "14.", "PPO") == "6 of 16"
    assert page.cell("Questions of the rubric", "21.", "PPO") == "\N{EN DASH} 20 unanswered"
    assert [row[2].strip() for row in page.tables["The worst conversations"][1:]] == ["all", "all", "6"]


@pytest.mark.parametrize(
    ("win", "low", "high", "words"),
    [(0.615, 0.51, 0.715, "on one side of one half"), (0.53, 0.42, 0.64, "do not show")],
)
def test_a_win_rate_is_not_called_one_that_it_is_not(
    tmp_path: Path, case: Case, win: float, low: float, high: float, words: str
) -> None:
    results, replies = deepcopy(case)
    results["human"][0]["win_rate"] = {"value": win, "low": low, "high": high}
    assert words in page_of(tmp_path / "suite", results, replies).text


def test_text_of_the_suite_stays_text(tmp_path: Path, case: Case) -> None:
    """Markup in any text is shown, never parsed; the only script is the page's own, named by its hash."""
    results, replies = deepcopy(case)
    hostile(results, replies)
    page = page_of(tmp_path / "suite", results, replies)
    assert page.count("script") == 1 and page.count("img") == 0
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for what in ("reply", "history", "error", "emotion", "title", "question", "about", "command", "reason", "sentences", "warnings",
                 "text", "source", "note", "stage", "wrote"):  # fmt: skip
        assert f"{what} </p></svg></style></script><script>document.title='owned'" in page.text, what
    assert page.open == []


def test_nothing_is_fetched_and_one_script_may_run(page: SuitePage) -> None:
    """No address in the page, every link stays in it, and the browser is told the hash of the one script."""
    linked = [attrs["href"] for _, attrs in page.elements if "href" in attrs]
    places = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert linked and {link[1:] for link in linked} <= places and all(link.startswith("#") for link in linked)
    assert not [attrs for _, attrs in page.elements if set(attrs) & {"src", "srcset", "xlink:href", "data", "action"}]
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"url\(|@import|https?://", page.html)
    script = re.search(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    [policy] = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")


def test_the_page_is_well_formed_and_says_first_what_it_is_not(page: SuitePage) -> None:
    assert page.open == []
    assert page.text.split("evaluation report", 1)[1].strip().startswith(NOTICE[0])
    names = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(names) == len(set(names))
    assert len(page.html) < 1_000_000
    heads = [attrs for tag, attrs in page.elements if tag == "th"]
    assert heads and all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in heads)
    drawn = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(drawn) > 15 and all(attrs["aria-label"] for attrs in drawn)


def test_what_there_is_nothing_of_is_left_out(tmp_path: Path, case: Case) -> None:
    """A suite with nothing but arms and figures has neither the sections nor the links of the rest."""
    results, _ = deepcopy(case)
    for name in ("human", "crisis"):
        results[name] = None
    for name in ("differences", "published", "sentences", "warnings", "agreement"):
        results[name] = []
    results |= {"curves": {}, "progress": {}}
    full = page_of(tmp_path / "full", *deepcopy(case))
    bare = page_of(tmp_path / "bare", results, [])
    kept = {"arms", "figures", "details"}
    for page, expected in ((full, {place for place, _ in CONTENTS}), (bare, kept)):
        places = {attrs["id"] for tag, attrs in page.elements if tag == "section" and "id" in attrs} - {"answer"}
        assert places == expected
        assert {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"} == expected
    assert "Short answer" not in bare.text
    assert "replies.parquet was not there" in bare.text


def test_a_bare_suite_has_a_page(tmp_path: Path) -> None:
    """A name is enough; a figure whose metric or arm nobody describes does not stop the page, nor is it hidden."""
    page = page_of(tmp_path / "suite", {"name": "bare", "arms": [{"name": "a"}], "corpora": [{"name": "c"}],
        "figures": [{"corpus": "c", "arm": "a", "metric": "odd", "value": 0.25}]}, [])  # fmt: skip
    assert page.cell("Figures on c", "odd", "a") == "0.250 no interval"


def test_the_page_replaces_an_older_one_and_bears_any_text(tmp_path: Path, case: Case) -> None:
    """Nothing else is left in the directory; a lone surrogate of a text does not stop the page."""
    results, replies = deepcopy(case)
    results["title"] = "half a letter: \ud800, and half a quote: \N{RIGHT-TO-LEFT OVERRIDE}"
    suite = write_suite(tmp_path / "suite", results, replies)
    (suite / "report.html").write_text("old")
    assert write_suite_report(suite).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in suite.iterdir()} == {"results.json", "replies.parquet", "report.html"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "results.json is not there"),
        ("{", "must be JSON"),
        ("[]", "must be a JSON object, not list"),
        ("{}", "must hold 'name'"),
        ('{"name": "x", "figures": [{"corpus": "c"}]}', "must hold 'arm'"),
    ],
)
def test_a_directory_that_is_no_suite_is_refused(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(told)):
        write_suite_report(tmp_path)


def test_decimals_show_three_digits_of_the_largest() -> None:
    assert [places([value]) for value in (0.0111, 0.4, 7.5, 43.21, 1234.0)] == [4, 3, 3, 1, 0]
    assert places([math.nan]) == 3 and places([0.0, 0.0]) == 3


browser, visit = raters.browser, raters.visit
_SIDEWAYS = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !e.closest('.scroll, .cards, svg');
}).map(e => e.tagName + '.' + e.className + ' ' + Math.round(e.getBoundingClientRect().right))"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_the_page_sideways(
    tmp_path: Path, case: Case, visit: raters.Visits, scheme: str
) -> None:
    """390 px, hostile and very long words among the texts: tables scroll in their own box, the page does not."""
    results, replies = deepcopy(case)
    hostile(results, replies)
    for row in replies:
        row["reply"] += " " + "and" * 120
    results["arms"][0]["title"] = "a_model_with_a_name_that_nobody_would_break_" * 3
    file = write_suite_report(write_suite(tmp_path / "suite", results, replies))
    page = visit(
        file.as_uri(), viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(raters.TOO_WIDE) <= 0
    assert page.evaluate(_SIDEWAYS) == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")
    assert page.title().endswith("evaluation report")  # what the attack would have changed
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate(raters.LOW_CONTRAST) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_and_has_a_name(
    finished: Path, page: SuitePage, visit: raters.Visits, scheme: str
) -> None:
    """Text and the words of charts reach 4.5:1 against the ground, controls have names."""
    shown = visit((finished / "report.html").as_uri(), color_scheme=scheme)
    raters.check_access(shown)
    assert shown.evaluate(_PALE) == []
    for width, name in ((1280, "wide"), (390, "phone")):
        shown.set_viewport_size({"width": width, "height": 860})
        raters.shoot(shown, f"suite-{name}-{scheme}", whole=True)


_PALE = """() => {
    const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const ground = light(rgb(getComputedStyle(document.body).backgroundColor));
    const far = (text, least) => { const a = light(rgb(text));
        return (Math.max(a, ground) + .05) / (Math.min(a, ground) + .05) < least; };
    return [...document.querySelectorAll('main svg text')].filter(e => far(getComputedStyle(e).fill, 4.5))
        .concat([...document.querySelectorAll('svg .line, svg .reach, svg .ring')].filter(e => far(getComputedStyle(e).stroke, 3)))
        .map(e => e.outerHTML);
}"""


@pytest.mark.slow
def test_search_and_filters_show_the_examples_that_fit(
    finished: Path, page: SuitePage, case: Case, visit: raters.Visits
) -> None:
    """Words, tier, arm and flag; together; the count is told; clearing shows all."""
    shown = visit((finished / "report.html").as_uri())
    cards, every = shown.locator(".example:visible"), shown.locator(".example").count()
    assert every == cards.count() > 20 and shown.inner_text("#shown") == f"{every} of {every} examples"
    shown.fill("input[name=words]", "  BUS   Stop ")
    wanted = [r["prompt_id"] for r in case[1] if "bus stop" in (r["history"] + r["reply"]).lower()]
    assert 0 < cards.count() <= len(set(wanted))
    assert all("bus stop" in text.lower() for text in cards.all_inner_texts())
    shown.click("button[type=reset]")
    shown.wait_for_function(f"document.querySelector('#shown').textContent.startsWith('{every} of')")
    shown.select_option("select[name=tier]", "imminent")
    of_tier = cards.count()
    assert 0 < of_tier < every
    assert set(shown.eval_on_selector_all(".example:not([hidden])", "all => all.map(e => e.dataset.tier)")) == {
        "imminent"
    }
    shown.select_option("select[name=arm]", "base")
    assert shown.locator(".card[data-arm]:visible").count() == of_tier
    shown.select_option("select[name=flag]", "abandonment_in_crisis")
    texts = cards.all_inner_texts()
    assert texts and all("abandonment in crisis" in text for text in texts)
    shown.select_option("select[name=tier]", "")
    shown.select_option("select[name=arm]", "")
    shown.select_option("select[name=flag]", "dismissal")
    with_flag = shown.locator(".example:visible:has(.flag)").count()
    assert 0 < cards.count() == with_flag < every
    assert all("dismissal" in text for text in cards.all_inner_texts())
    shown.fill("input[name=words]", "no such words anywhere")
    assert cards.count() == 0 and shown.is_visible("#nothing")
    assert shown.inner_text("#shown") == f"0 of {every} examples"


@pytest.mark.slow
def test_it_prints_light_without_controls_and_with_what_was_folded(
    finished: Path, page: SuitePage, visit: raters.Visits
) -> None:
    """On paper: no filter, no contents, dark ink whatever the screen's scheme, eight examples and a word on the others."""
    shown = visit((finished / "report.html").as_uri(), color_scheme="dark", viewport={"width": 720, "height": 1000})
    shown.emulate_media(media="print")
    assert not shown.is_visible("#filter") and not shown.is_visible(".contents")
    assert shown.locator(".example:visible").count() == 8
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.evaluate(raters.TOO_WIDE) <= 0
    assert shown.is_visible(".arm pre")
    assert json.loads((finished / "results.json").read_text())["name"] in shown.inner_text("header")
