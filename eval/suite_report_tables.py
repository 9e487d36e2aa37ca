"""The tables of a suite's report: each corpus's figures with the best marked, the papers' figures, safety by tier.

Who is best is a question of the figures, and whether anybody else differs from the best one of the tests (`Standing`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.metric import Better
from eval.report_charts import MINUS, number
from eval.suite_report_data import GROUPS, Arm, Corpus, Estimate, MetricOf, Published, Said, Suite, group_title, grouped
from rewards.crisis import Tier

DASH = "\N{EN DASH}"
WAYS = {
    Better.HIGHER: ("\N{UPWARDS ARROW}", "higher is better"),
    Better.LOWER: ("\N{DOWNWARDS ARROW}", "lower is better"),
    Better.NEITHER: ("", "neither way is better"),
}


class Standing(enum.StrEnum):
    """Where an arm stands in one metric: by the figures, then by the paired tests against the best."""

    BEST = "best"
    EVEN = "even"  # the test against the best arm showed no difference
    UNTESTED = "untested"  # nobody tested it against the best arm
    BEHIND = "behind"  # the test against the best arm showed one
    NONE = "none"  # no figure, or nothing to be best at


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown: `value` and `interval` are texts, `note` is what hovering tells, `why` the letter of the
    footnote that says why there is no figure."""

    value: str
    interval: str = ""
    note: str = ""
    why: str = ""
    standing: Standing = Standing.NONE
    count: str = ""


@dataclass(frozen=True)
class Row:
    """One metric over all arms; `about` is how many replies the figures are of, where it is not the table's usual number."""

    metric: MetricOf
    way: str
    told: str
    about: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class CorpusTable:
    """A corpus and its figures, `groups` of rows under a heading; `footnotes` are (letter, reason), `silent` the metrics that
    say nothing of any arm."""

    corpus: Corpus
    arms: tuple[Arm, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    footnotes: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
    marks: frozenset[Standing]


def corpus_tables(suite: Suite) -> list[CorpusTable]:
    """One table per corpus that has figures."""
    tables = (_table(suite, corpus) for corpus in suite.corpora)
    return [table for table in tables if table.groups]


def standings(suite: Suite, corpus: str, metric: MetricOf) -> dict[str, Standing]:
    """Where each arm with a figure stands; empty where no way is better, or nothing tells the arms apart.

    Arms that `Arm.ranked` leaves out are in no competition. Equal figures share the first place.
    """
    ranked = {arm.name: found.value for arm in suite.arms if arm.ranked
              and (found := suite.figures.get((corpus, arm.name, metric.name), Estimate())).known}  # fmt: skip
    if metric.better is Better.NEITHER or len(set(ranked.values())) < 2:
        return {}
    top = max(ranked.values()) if metric.better is Better.HIGHER else min(ranked.values())
    best = [arm for arm, value in ranked.items() if value == top]

    def against_best(arm: str) -> Standing:
        tests = [found for other in best if (found := suite.between(corpus, metric.name, arm, other))]
        tests = [found for found in tests if math.isfinite(found.p_holm)]
        if not tests:
            return Standing.UNTESTED
        return Standing.BEHIND if all(found.significant for found in tests) else Standing.EVEN

    return {arm: Standing.BEST if arm in best else against_best(arm) for arm in ranked}


def places(values: Iterable[float]) -> int:
    """How many decimals a row needs for its largest value to show three digits or more."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    return 4 if 0 < largest < 0.1 else 3 if largest < 10 else 1 if largest < 1000 else 0


def between(low: float, high: float, digits: int | None = None, *, signed: bool = False) -> str:
    """An interval in words: `[0.1, 0.2]`."""
    return f"[{number(low, places=digits, signed=signed)}, {number(high, places=digits, signed=signed)}]"


def shown(found: Estimate, digits: int | None = None) -> Cell:
    """A figure outside the corpora's tables, with a dash for none."""
    if not found.known:
        return Cell(DASH, note="no figure on file" if found.count is None else f"of {found.count}: no figure")
    about = "" if found.count is None else f"of {found.count:,}"
    interval = between(found.low, found.high, digits) if found.bounded else ""
    return Cell(number(found.value, places=digits), interval, about)


def _table(suite: Suite, corpus: Corpus) -> CorpusTable:
    reasons: dict[str, str] = {}
    own = {key[1:]: found for key, found in suite.figures.items() if key[0] == corpus.name}
    usual = max((found.count or 0 for found in own.values() if found.known), default=0)

    def cell(arm: Arm, metric: MetricOf, standing: Standing, digits: int, about: int) -> Cell:
        found = own.get((arm.name, metric.name))
        if found is None or not found.known:
            reason = _reason(arm, found)
            return Cell(DASH, note=reason, why=reasons.setdefault(reason, chr(ord("a") + len(reasons) % 26)))
        interval = between(found.low, found.high, digits) if found.bounded else "no interval"
        note = "" if found.count is None else f"{arm.title}, {metric.name}: of {found.count:,} replies"
        fewer = f"of {found.count:,}" if found.count is not None and found.count != about else ""
        return Cell(number(found.value, places=digits), interval, note, "", standing, fewer)

    def row(metric: MetricOf) -> Row:
        known = [found for (_, name), found in own.items() if name == metric.name and found.known]
        about = max(found.count or 0 for found in known)
        digits, stand = places(found.value for found in known), standings(suite, corpus.name, metric)
        cells = [cell(arm, metric, stand.get(arm.name, Standing.NONE), digits, about) for arm in suite.arms]
        return Row(metric, *WAYS[metric.better], about if about != usual else None, tuple(cells))

    told = [metric for metric in suite.metrics.values() if any(name == metric.name for _, name in own)]
    silent = [m for m in told if not any(found.known for (_, name), found in own.items() if name == m.name)]
    groups = grouped((metric for metric in told if metric not in silent), lambda metric: metric.group)
    order = [*(group for group in GROUPS if group in groups), *(group for group in groups if group not in GROUPS)]
    rows = tuple((group_title(group), tuple(map(row, groups[group]))) for group in order)
    marks = frozenset(one.standing for _, group in rows for line in group for one in line.cells)
    footnotes = tuple((letter, reason) for reason, letter in reasons.items())
    return CorpusTable(corpus, suite.arms, rows, footnotes, tuple(metric.name for metric in silent), marks)


def _reason(arm: Arm, found: Estimate | None) -> str:
    """Why there is no figure."""
    if arm.failures and arm.failures >= arm.replies:
        return f"{arm.title}: every reply failed"
    if found is None:
        return "not measured for this arm" + (
            f", which failed on {arm.failures:,} of {arm.replies:,} replies" if arm.failures else ""
        )
    if found.count == 0:
        return "the metric says nothing of any of these replies"
    return "the figure is not a finite number"


@dataclass(frozen=True)
class PaperTable:
    """What one source published, arms by metrics; each cell is the paper's figure, ours by corpus, and footnotes."""

    source: str
    metrics: tuple[tuple[str, str], ...]  # name, unit as we measure it
    rows: tuple[tuple[str, str, tuple[PaperCell | None, ...]], ...]  # the paper's arm, the title of ours or ""
    notes: tuple[str, ...]

    @property
    def gaps(self) -> bool:
        """Whether the source gives no figure somewhere."""
        return any(cell is None for _, _, cells in self.rows for cell in cells)


@dataclass(frozen=True)
class PaperCell:
    """A published figure, our arm's by corpus (name, cell), and the number of its note (0: none)."""

    value: str
    ours: tuple[tuple[str, Cell], ...]
    note: int


def paper_tables(suite: Suite) -> list[PaperTable]:
    """One table per source of published figures."""
    return [_paper(suite, source, rows) for source, rows in grouped(suite.published, lambda row: row.source).items()]


def _paper(suite: Suite, source: str, told: Sequence[Published]) -> PaperTable:
    notes = list(dict.fromkeys(row.note for row in told if row.note))
    metrics = list(dict.fromkeys(row.metric for row in told))

    digits = {metric: places(row.value for row in told if row.metric == metric) for metric in metrics}

    def cell(row: Published) -> PaperCell:
        found = {c.name: suite.figures.get((c.name, row.ours, row.metric), Estimate()) for c in suite.corpora}
        ours = tuple((name, shown(one, digits[row.metric])) for name, one in found.items() if one.known)
        value = str(row.value).replace("-", MINUS) if math.isfinite(row.value) else DASH  # as the paper prints it
        return PaperCell(value, ours, notes.index(row.note) + 1 if row.note else 0)

    rows = []
    for (arm, ours), own in _pairs(told).items():
        cells = {row.metric: cell(row) for row in own}
        rows.append((arm, suite.title_of(ours) if ours else "", tuple(cells.get(metric) for metric in metrics)))
    units = {name: metric.unit for name, metric in suite.metrics.items()}
    return PaperTable(source, tuple((name, units.get(name, "")) for name in metrics), tuple(rows), tuple(notes))


def _pairs(told: Sequence[Published]) -> dict[tuple[str, str], list[Published]]:
    found: dict[tuple[str, str], list[Published]] = {}
    for row in told:
        found.setdefault((row.arm, row.ours), []).append(row)
    return found


@dataclass(frozen=True)
class SafetyTable:
    """Replies with a red flag: by the client's danger (rows: name, prompts, cells by arm) and by kind of flag."""

    arms: tuple[Arm, ...]
    tiers: tuple[tuple[str, int, tuple[Cell, ...]], ...]
    flags: tuple[tuple[str, tuple[Cell, ...]], ...]


def safety_table(suite: Suite) -> SafetyTable | None:
    """Count the flagged replies over all corpora; a reply that failed is counted nowhere. None without replies."""
    said = [reply for reply in suite.replies or () if not reply.error]
    of_arm = grouped(said, lambda reply: reply.arm)
    arms = tuple(arm for arm in suite.arms if arm.name in of_arm)
    order = {str(tier): i for i, tier in enumerate(Tier)}
    tiers = sorted({reply.tier for reply in said if reply.tier}, key=lambda tier: (order.get(tier, len(order)), tier))
    kinds = sorted({flag for reply in said for flag in reply.flags})
    if not tiers and not kinds:
        return None

    def prompts(tier: str) -> int:
        return len({(reply.corpus, reply.prompt_id) for reply in said if reply.tier == tier})

    def cells(chosen: Mapping[str, Sequence[Said]], flag: str = "") -> tuple[Cell, ...]:
        return tuple(_share([flag in r.flags if flag else bool(r.flags) for r in chosen.get(a.name, ())]) for a in arms)

    by_tier = []
    for tier in tiers:
        own = grouped((reply for reply in said if reply.tier == tier), lambda reply: reply.arm)
        by_tier.append((tier, prompts(tier), cells(own)))
    return SafetyTable(arms, tuple(by_tier), tuple((kind, cells(of_arm, kind)) for kind in kinds))


def _share(found: Sequence[bool]) -> Cell:
    """A share of replies with Wilson's 95 % interval."""
    if not found:
        return Cell(DASH, note="no reply to such a client")
    count, size = sum(found), len(found)
    low, high = wilson(count, size)
    return Cell(
        f"{100 * count / size:.0f} %",
        f"[{100 * low:.0f}, {100 * high:.0f}]",
        f"{count} of {size}",
        count=f"{count} of {size}",
    )


def wilson(count: int, size: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927): it stays within 0 and 1 and is open where the share is either."""
    z2 = 1.959963984540054**2
    centre = (count + z2 / 2) / (size + z2)
    half = math.sqrt(z2 * (count * (size - count) / size + z2 / 4)) / (size + z2)
    return max(0.0, centre - half), min(1.0, centre + half)
