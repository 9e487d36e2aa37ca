"""From the rating service to the preference model: an exported file is fitted to as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.experts.config import ServiceConfig
from rewards.experts.desk import Submission
from rewards.experts.form import CRITERIA
from rewards.experts.reward_rules import mean
from rewards.experts.store import Store
from rewards.experts.types import Item
from rewards.fit_preference import fit_preference_command
from rewards.rated_replies import read_ratings
from rollout.types import Speaker, Turn

SAID = (Turn(Speaker.CLIENT, "I feel so low."), Turn(Speaker.THERAPIST, "Since when?"), Turn(Speaker.CLIENT, "May."))
WARM, COLD = "That sounds very hard for you, thank you for telling me. It is case {}.", "Get over it and try case {}."
GOOD = [Item(f"k/{at}", SAID, (WARM, COLD)[at % 2].format(at), origin={"prompt": f"d{at // 2}#3"}) for at in range(48)]
BAD = [
    Item("k/empty", SAID, ""),
    Item("k/blank", SAID, " \n"),
    Item("k/first", (), "Hello, what brings you here?"),
    Item("k/silence", (Turn(Speaker.CLIENT, " "),), "You are silent."),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Everything rated by two, and by hidden repeats, which say the opposite."""
    config = ServiceConfig(sitting=1000, overlap=0, repeats=0.2, repeat_gap=3)
    items = [Item(each.key, each.history, each.reply, wanted=2, origin=each.origin) for each in (*GOOD, *BAD)]
    with Store(tmp_path, config, mean) as made:
        made.add(items)
        for rater in ("anna", "ben"):
            made.invite(rater)
            seen = set()
            while (given := made.next(rater)["item"]) is not None:
                overall = 0.9 if given["reply"].startswith("That") else 0.2
                overall = 1 - overall if given["reply"] in seen else overall
                seen.add(given["reply"])
                criteria = dict.fromkeys((criterion.name for criterion in CRITERIA), overall)
                made.rate(rater, Submission(given["lease"], given["lease"], criteria, overall))
        yield made


def test_an_export_holds_every_rating_and_says_which_count(store: Store, tmp_path: Path) -> None:
    """Hidden repeats and replies without words, or to nobody, are marked: readers see each good reply once, at the score
    of its first ratings, and another service takes in all of them."""
    file = tmp_path / "ratings.jsonl"
    file.write_bytes(store.export("jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    repeats = [row for row in rows if row["repeat"]]
    assert len(repeats) > 5 and len(rows) == 2 * len([*GOOD, *BAD]) + len(repeats)
    assert len([row for row in rows if row["counts"]]) == 2 * len(GOOD)
    assert not any(row["counts"] for row in repeats)
    rated = {one.reply: one for one in read_ratings(file)}
    assert rated.keys() == {item.reply for item in GOOD}
    assert all(one.score == pytest.approx(0.9 if reply.startswith("That") else 0.2) for reply, one in rated.items())
    assert rated[GOOD[7].reply].group == "d3" and rated[GOOD[7].reply].history == SAID
    with Store(tmp_path / "other", store.config, mean) as other:
        assert other.take_in("jsonl", file.read_bytes()) == (len([*GOOD, *BAD]), len(rows))


def test_a_preference_model_is_fitted_to_an_export(store: Store, tmp_path: Path) -> None:
    """`attune fit preference --ratings FILE`, without a hand laid on the file."""
    file = tmp_path / "ratings.jsonl"
    file.write_bytes(store.export("jsonl"))
    out = tmp_path / "model"
    assert fit_preference_command(["--ratings", str(file), "--out", str(out), "--members", "2"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert sum(card["report"]["replies"].values()) == len(GOOD) and card["source"]["files"].keys() == {file.name}
