"""The figures of collapse, by hand and against a second writing of their definitions."""

from __future__ import annotations

import math
import random

import pytest

from eval.collapse import collapse_figures
from rewards.conduct_rules import TEMPLATES


def test_by_hand() -> None:
    """Five replies, counted on paper."""
    figures = collapse_figures(
        [
            "That sounds hard. What happened?",  # 5 words, 4 pairs
            "that  sounds hard. WHAT happened?",  # a copy of it
            "That sounds hard, what a week",  # 6 words, 5 pairs, the same opening
            "I\u2019m here to help",  # 4 words, 3 pairs
            "",
        ]
    )
    words = {"that", "sounds", "hard", "what", "happened", "a", "week", "im", "here", "to", "help"}
    pairs = 3 + 1 + 2 + 3  # of the opening; "what happened"; "what a", "a week"; of the last
    assert figures == pytest.approx(
        {
            "mean_words": 20 / 5,
            "distinct_1": len(words) / 20,
            "distinct_2": pairs / 16,
            "duplicate_rate": 2 / 5,
            "opening_rate": 3 / 5,
            "template_rate": 1 / 5,
            "empty_rate": 1 / 5,
        }
    )


NOTHING = dict.fromkeys(("duplicate_rate", "opening_rate", "template_rate", "empty_rate"), 0.0)


@pytest.mark.parametrize(
    ("replies", "figures"),
    [
        (["no"], {**NOTHING, "mean_words": 1, "distinct_1": 1, "distinct_2": 0}),
        (["no no no"], {**NOTHING, "mean_words": 3, "distinct_1": 1 / 3, "distinct_2": 1 / 2}),
        (["..."], {**NOTHING, "mean_words": 0, "distinct_1": 0, "distinct_2": 0, "empty_rate": 1}),
        (
            ["", " \n"],
            {
                "mean_words": 0,
                "distinct_1": 0,
                "distinct_2": 0,
                "duplicate_rate": 1,
                "opening_rate": 1,
                "template_rate": 0,
                "empty_rate": 1,
            },
        ),
        (
            ["a b c", "a b c d"],  # all of one reply is not the opening of the other
            {**NOTHING, "mean_words": 3.5, "distinct_1": 4 / 7, "distinct_2": 3 / 5},
        ),
        (
            ["a b", "c a"],  # "b c" would cross from one reply to the next
            {**NOTHING, "mean_words": 2, "distinct_1": 3 / 4, "distinct_2": 1},
        ),
    ],
)
def test_edges(replies: list[str], figures: dict[str, float]) -> None:
    """One reply, one word, no word, short openings."""
    assert collapse_figures(replies) == pytest.approx(figures)


def test_no_replies_have_no_figures() -> None:
    """An empty list is an error that names it, not a row of zeros."""
    with pytest.raises(ValueError, match="replies must hold at least one reply, is an empty list"):
        collapse_figures([])


@pytest.mark.parametrize("phrase", TEMPLATES)
def test_templates_are_found_however_they_are_written(phrase: str) -> None:
    """Case, either apostrophe, emphasis and line breaks hide no template."""
    for written in (phrase, phrase.upper(), phrase.replace("'", "\u2019"), f"*{phrase}*", phrase.replace(" ", "\n")):
        assert collapse_figures([f"Oh. {written}, really."])["template_rate"] == 1


@pytest.mark.parametrize("text", ["You are not along", "I'm here to helpfully say", "Here, to help", "not alone"])
def test_what_only_looks_like_a_template(text: str) -> None:
    """Phrases are matched as whole words."""
    assert collapse_figures([text])["template_rate"] == 0


def reference(replies: list[str]) -> dict[str, float]:
    """The definitions, pair by pair, for replies of plain lower-case words."""
    said, n = [reply.split() for reply in replies], len(replies)

    def distinct(size: int) -> float:
        seen, total = [], 0
        for spoken in said:
            for start in range(max(0, len(spoken) - size + 1)):
                total += 1
                if spoken[start : start + size] not in seen:
                    seen.append(spoken[start : start + size])
        return len(seen) / total if total else 0.0

    def alike(end: int | None) -> float:
        return sum(any(said[i][:end] == said[j][:end] for j in range(n) if j != i) for i in range(n)) / n

    return {
        "mean_words": math.fsum(len(spoken) for spoken in said) / n,
        "distinct_1": distinct(1),
        "distinct_2": distinct(2),
        "duplicate_rate": alike(None),
        "opening_rate": alike(4),
        "template_rate": sum(" you are not alone " in f" {' '.join(spoken)} " for spoken in said) / n,
        "empty_rate": len([spoken for spoken in said if not spoken]) / n,
    }


@pytest.mark.parametrize("seed", range(40))
def test_against_the_reference(seed: int) -> None:
    """Random replies of few words, so that all of it happens: copies, like openings, templates, empty replies."""
    draw = random.Random(seed)
    pieces = ["you are not alone", "a", "b", "a b", "you are", "not"]
    replies = [" ".join(draw.choices(pieces, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 30))]
    figures = collapse_figures(replies)
    assert figures == pytest.approx(reference(replies))
    assert figures["duplicate_rate"] <= figures["opening_rate"]
    assert figures_as_shown(replies, draw) == figures


def figures_as_shown(replies: list[str], draw: random.Random) -> dict[str, float]:
    """The figures after changes of case and white space, which must not matter."""
    return collapse_figures([f" {r}".swapcase().replace(" ", draw.choice(["  ", "\n", "\t "])) for r in replies])
