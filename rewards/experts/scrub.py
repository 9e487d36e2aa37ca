"""Names and contacts out of a text, before it is shown to a rater or stored.

    "I'm Anna, call me on 555-867-5309"  ->  "I'm [name], call me on [phone]"

Rules and a list of frequent first names; no model. What they do not foresee passes: a rare name that nothing introduces,
a surname alone, a town, an employer. Numbers and pages of crisis services stay: a good reply gives them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from rewards.experts.scrub_contacts import without_contacts
from rewards.experts.scrub_names import (
    COMMON,
    MONTHS_AND_PLACES,
    WORD,
    WORDY,
    is_capital_name,
    is_listed,
    looks_like_a_name,
    may_be_a_name,
)
from rewards.experts.scrub_rules import (
    AND,
    BEFORE_A_WORDY,
    BEGINS,
    BETRAYS,
    EAST_ASIAN,
    INTRODUCES,
    LISTING,
    LOWER_KIN,
    LOWER_SURNAME,
    PRESENTS,
    SPOKEN_TO,
    SUGGESTS,
    SURNAME,
    before,
    compiled,
)

_SURNAMES, _JOINED = 4, 8  # so many belong to a name


def scrub(text: str) -> str:
    """`text` with [name], [phone], [email], [address], [link], [handle] and [id] in place of names and contacts.

    Scrubbing a scrubbed text changes nothing.
    """
    return scrub_together([text])[0]


def scrub_together(texts: Sequence[str]) -> tuple[str, ...]:
    """`scrub` for the turns of one dialogue: a name that one of them introduces is taken out of all."""
    scrubbed = tuple(texts)
    while (once := _scrub_once(scrubbed)) != scrubbed:  # ends: every change leaves fewer letters outside the brackets
        scrubbed = once
    return scrubbed


def _scrub_once(texts: Sequence[str]) -> tuple[str, ...]:
    texts = [without_contacts(text) for text in texts]
    spans = [sorted(set(_names(text))) for text in texts]
    known = {
        word
        for text, found in zip(texts, spans, strict=True)
        for start, end in found
        for word in _words(text[start:end])
    }
    return tuple(_cut(text, [*found, *_again(text, known)]) for text, found in zip(texts, spans, strict=True))


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    kept, at = [], 0
    for start, end in sorted(spans):
        if start >= at:
            kept += [text[at:start], "[name]"]
        at = max(at, end)
    return "".join([*kept, text[at:]])


def _words(name: str) -> Iterator[str]:
    return (word for word in WORD.findall(name) if len(word) >= 3 and word.casefold() not in COMMON)


def _again(text: str, known: set[str]) -> Iterator[tuple[int, int]]:
    """Where a name that was introduced stands again: as it was written, or capital."""
    for word in WORD.finditer(text):
        said = word.group()
        if (said in known or said.lower() in known) and not (said.casefold() in WORDY and _begins(text, word.start())):
            yield word.span()


def _names(text: str) -> Iterator[tuple[int, int]]:
    """Where names stand, surnames included."""
    for rules, fits in ((INTRODUCES, may_be_a_name), (PRESENTS, is_capital_name), (SUGGESTS, looks_like_a_name)):
        for match in itertools.chain.from_iterable(compiled(rule, re.I).finditer(text) for rule in rules):
            if (word := WORD.match(text, match.end())) and fits(word.group()):
                yield from _whole(text, *word.span())
    for match in itertools.chain.from_iterable(compiled(rule).finditer(text) for rule in BETRAYS):
        if looks_like_a_name(match["name"]):
            yield from _whole(text, *match.span("name"))
    yield from (match.span("name") for match in compiled(LOWER_KIN).finditer(text) if match["name"] in WORDY)
    yield from (match.span("name") for match in compiled(EAST_ASIAN).finditer(text))
    for word in WORD.finditer(text):
        if is_listed(word.group()) or _is_a_wordy_name(text, word):
            yield from _whole(text, *word.span())


def _whole(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The name at [start, end) with its surnames, and a few names joined to it by "and" or commas."""
    for _ in range(_JOINED):
        end = _with_surnames(text, start, end)
        yield start, end
        joined = AND.match(text, end)
        word = WORD.match(text, joined.end()) if joined else None
        if joined is None or word is None:
            return
        sure = joined["and"] or LISTING.match(text, joined.end())
        if not (is_listed(word.group()) or (sure and looks_like_a_name(word.group()))):
            return
        start, end = word.span()


def _with_surnames(text: str, start: int, end: int) -> int:
    for _ in range(_SURNAMES):
        if not (more := SURNAME.match(text, end)) or more["word"].casefold() in COMMON:
            break
        end = more.end()
    if text[start].islower() and (more := LOWER_SURNAME.match(text, end)) and more["word"].casefold() not in COMMON:
        end = more.end()
    return end


def _is_a_wordy_name(text: str, word: re.Match[str]) -> bool:
    fold = word.group().casefold()
    if fold not in WORDY or fold in MONTHS_AND_PLACES or not word.group()[0].isupper() or word.group().isupper():
        return False
    so_far, after = before(text, word.start()), word.string[word.end() : word.end() + 1]
    ahead, behind = SPOKEN_TO
    return bool(BEFORE_A_WORDY.search(so_far) or (ahead.search(so_far) and behind.match(after)))


def _begins(text: str, at: int) -> bool:
    return BEGINS.search(before(text, at)) is not None
