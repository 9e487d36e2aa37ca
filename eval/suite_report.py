"""The page of an evaluation: one HTML file with the question, what was found, how sure it is, and the replies themselves.

`write_suite_report(directory)` reads `results.json` and `replies.parquet` and writes `report.html` beside them. The page loads
nothing; its one script, which filters the examples, is named to the browser by its hash, and no other may run.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.report_charts import LINES, number
from eval.run_directory import flatten
from eval.suite_report_data import Suite
from eval.suite_report_examples import examples, stories
from eval.suite_report_forest import forests
from eval.suite_report_parts import agreement_rows, arm_cards, crisis_part, human_parts, tiles, training_curves
from eval.suite_report_read import read_suite
from eval.suite_report_tables import Standing, corpus_tables, paper_tables, safety_table

HERE = Path(__file__).parent
NOTICE = (
    "Research software; not a substitute for care.",
    "The replies on this page were written by language models and approved by nobody; some may be wrong, hurtful or unsafe. "
    "If you, or somebody near you, may be in danger, call your local emergency number; in the United States, call or text 988 "
    "at any hour.",
)
CONTENTS = (
    ("arms", "What was compared"),
    ("figures", "Figures"),
    ("differences", "Differences"),
    ("papers", "The papers' figures"),
    ("people", "What people preferred"),
    ("safety", "Safety"),
    ("crisis", "Clients in crisis"),
    ("training", "Training"),
    ("progress", "Replies through the training"),
    ("examples", "Examples"),
    ("agreement", "Judge and experts"),
    ("details", "What was run"),
)
WITH = {  # the part without which a section is left out
    "arms": "cards", "figures": "tables", "differences": "forests", "papers": "papers", "people": "humans", "safety": "safety",
    "crisis": "crisis", "training": "curves", "progress": "stories", "examples": "examples", "agreement": "agreement",
}  # fmt: skip


def write_suite_report(directory: Path) -> Path:
    """Write `directory/report.html` from the suite's results and replies, and return its path.

    The file is replaced in one move, so a reader never sees half a page. Raises `ValueError` where `results.json` is missing
    or is not what a suite writes; without `replies.parquet` the page says that it was not there.
    """
    page = render_suite(read_suite(directory))
    target = directory / "report.html"
    draft = directory / f"report.html.{os.getpid()}.tmp"
    draft.write_bytes(page.encode("utf-8", "replace"))  # a lone surrogate of somebody's text becomes a question mark
    os.replace(draft, target)
    return target


def render_suite(suite: Suite) -> str:
    """Return the page. Every text of the suite is escaped, and nothing in the page is fetched."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["zip"] = zip
    environment.filters["breakable"] = breakable
    script = (HERE / "suite_report_script.js.j2").read_text(encoding="utf-8")
    parts = _parts(suite)
    return environment.get_template("suite_report.html.j2").render(
        suite=suite,
        notice=NOTICE,
        house=house_style(),
        lines=LINES,
        script=Markup(script),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        Standing=Standing,
        made=suite.time[:16].replace("T", " ") + (" UTC" if suite.time.endswith(("Z", "+00:00")) else ""),
        missing=suite.replies is None,
        unranked=any(not arm.ranked for arm in suite.arms),
        contents=[(place, label) for place, label in CONTENTS if place not in WITH or parts[WITH[place]]],
        **parts,
    )


def _parts(suite: Suite) -> dict[str, Any]:
    """What each section tells; what there is nothing of is empty, and its section is left out."""
    tested = forests(suite)
    return {
        "tiles": tiles(suite),
        "cards": arm_cards(suite),
        "tables": corpus_tables(suite),
        "papers": paper_tables(suite),
        "forests": [one for one in tested if one.plots or one.same],
        "tests": [one for one in tested if one.table],
        "curves": training_curves(suite),
        "stories": stories(suite),
        "safety": safety_table(suite),
        "examples": examples(suite),
        "crisis": crisis_part(suite),
        "humans": human_parts(suite),
        "agreement": agreement_rows(suite),
        "provenance": list(flatten(suite.provenance)),
    }


def breakable(name: str) -> Markup:
    """A metric's name that may break after its joints, so that a narrow column need not break a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])", name))


def house_style() -> Markup:
    """The style sheet of the runs' report, which this page shares and adds to."""
    layout = (HERE / "report_layout.html.j2").read_text(encoding="utf-8")
    style, found, _ = layout.partition("<style>")[2].partition("{% block style %}")
    assert found and "{{" not in style and "{%" not in style, (
        "report_layout.html.j2 must open with its plain style sheet"
    )
    return Markup(style)
